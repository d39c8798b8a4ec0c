"""A warning about a data set is given once a process."""

from __future__ import annotations

import logging

import pytest

from services.training.data.warn import warn


def test_the_same_is_said_once_and_something_else_is_said_too(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("services.training.data.test")
    for text in ("a.jpg is left out", "b.jpg is left out", "a.jpg is left out"):
        warn(log, text)
    assert caplog.messages == ["a.jpg is left out", "b.jpg is left out"]
