"""contracts.registry: tags that people can edit, read without an error."""

from __future__ import annotations

import pytest

from contracts.registry import CANARY_PERCENT, QUARANTINED, SHADOW, Quarantine, Rollout


@pytest.mark.parametrize("rollout", [Rollout(), Rollout(12.5, True), Rollout(100)])
def test_a_rollout_reads_back_from_its_tags(rollout: Rollout) -> None:
    assert Rollout.of(rollout.tags()) == rollout


@pytest.mark.parametrize("percent", ["ten", "101", "-1", "nan", "inf"])
def test_a_share_that_is_none_counts_as_0_and_is_told(percent: str) -> None:
    found = Rollout.of({CANARY_PERCENT: percent, SHADOW: "yes"})
    assert (found.percent, found.shadow) == (0, False)
    assert found.problem is not None
    assert repr(percent) in found.problem
    assert "'yes'" in found.problem


def test_a_quarantine_reads_back_from_its_tag() -> None:
    quarantine = Quarantine("its golden images are wrong.", "2026-01-01T00:00:00+00:00")
    assert Quarantine.of({QUARANTINED: quarantine.tag()}) == quarantine
    assert Quarantine.of({}) is None


@pytest.mark.parametrize("text", ["do not serve this", "", "[]", '{"reason": 1}'])
def test_a_tag_that_was_written_by_hand_is_a_quarantine_too(text: str) -> None:
    found = Quarantine.of({QUARANTINED: text})
    assert found is not None
    assert found.reason


def test_a_long_reason_is_cut() -> None:
    assert len(Quarantine("x" * 10**6, "").tag()) < 2000
