"""`docker compose down`, and `up` again: what was there is there."""

from __future__ import annotations

import pytest

from tests.compose.running import Image, Restarted, held

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]


def test_champion_runs_artifacts_and_answers_are_what_they_were(restarted: Restarted, digits: list[Image]) -> None:
    assert held(restarted.stack, digits) == restarted.before
    assert any("nothing is fitted" in line for line in restarted.stack.log("ship"))
