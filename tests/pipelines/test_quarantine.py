"""What quarantine means to promotions, trials and rollbacks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from contracts.errors import RegistryError
from contracts.registry import QUARANTINED
from pipelines import history, registry
from pipelines.challenge import challenge
from pipelines.promotion import Promotion, promote, rollback
from pipelines.refusal import Refused
from tests.pipelines.trials import entries, refuse

Submit = Callable[..., Promotion]
pytestmark = pytest.mark.usefixtures("quick_export")


@pytest.mark.usefixtures("two")
def test_a_version_in_quarantine_is_neither_promoted_nor_tried_until_that_is_lifted() -> None:
    refuse("2")
    for command in (promote, challenge):
        with pytest.raises(Refused) as refused:
            command("tiny", "2")
        message = refused.value.message
        assert "a service refuses tiny version 2 since 2026-01-01T00:00:00+00:00" in message
        assert "its golden images are wrong" in message
        assert "`stride promote tiny 2 --lift-quarantine`" in message
        assert "version 1 stays the champion" in message
    assert [entry[0] for entry in entries()[:2]] == ["refuse", "refuse"]

    assert promote("tiny", "2", lift_quarantine=True).version == "2"
    assert QUARANTINED not in registry.connect().get_model_version("tiny", "2").tags


def test_the_quarantine_of_a_version_that_the_gate_refuses_is_not_lifted(submit_run: Submit) -> None:
    submit_run("worse")
    submit_run("good")
    refuse("1")

    with pytest.raises(Refused, match="champion: "):
        promote("tiny", "1", lift_quarantine=True)

    assert QUARANTINED in registry.connect().get_model_version("tiny", "1").tags


def test_a_champion_in_quarantine_is_told_and_can_be_tried_again(submit_run: Submit) -> None:
    submit_run("good")
    refuse("1")
    told = promote("tiny", "1")

    assert told.action == "unchanged"
    assert "a service refused it and serves the one before (its golden images are wrong)" in told.reasons[1]
    assert QUARANTINED in registry.connect().get_model_version("tiny", "1").tags

    assert "tried again" in promote("tiny", "1", lift_quarantine=True).reasons[1]
    assert QUARANTINED not in registry.connect().get_model_version("tiny", "1").tags


def test_a_rollback_passes_over_what_services_refuse(submit_run: Submit) -> None:
    for quality in ("worse", "good", "good"):
        submit_run(quality)
    refuse("2")
    said: list[str] = []

    with pytest.raises(RegistryError, match="tiny version 2 is in quarantine, a service refused it"):
        rollback("tiny", to="2")
    assert rollback("tiny", say=said.append).version == "1"
    assert any("tiny version 2 is passed over" in line for line in said)


@pytest.mark.usefixtures("two")
def test_the_history_tells_which_versions_are_in_quarantine() -> None:
    refuse("2")

    quarantined = {entry.to_version: entry.quarantined for entry in history.history("tiny")}
    assert quarantined == {"1": "", "2": "its golden images are wrong."}
