"""Each test hears the warnings about its data, whatever the tests before it have heard."""

from __future__ import annotations

import pytest

from services.training.data.warn import warn


@pytest.fixture(autouse=True)
def _nothing_was_said() -> None:
    warn.cache_clear()
