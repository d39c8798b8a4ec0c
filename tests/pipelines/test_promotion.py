from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import BundleError, GateRefused, RegistryError
from contracts.registry import PROMOTED_AT
from pipelines import history, promotion, registry
from pipelines.export import export, silent
from pipelines.model_lock import locked
from pipelines.promotion import Promotion, promote, rollback, submit
from pipelines.refusal import Refused
from services.training.data.dataset import Dataset

Submit = Callable[..., Promotion]
pytestmark = pytest.mark.usefixtures("quick_export")


def _champion() -> str | None:
    found = registry.champion(registry.connect(), "tiny")
    return found.version if found else None


def _actions() -> list[tuple[str, str | None, str | None]]:
    return [(entry.action, entry.from_version, entry.to_version) for entry in history.history("tiny")]


def test_a_first_candidate_becomes_the_champion(submit_run: Submit) -> None:
    done = submit_run("worse")

    assert (done.action, done.version, done.former) == ("promote", "1", None)
    assert _champion() == "1"
    assert int(registry.connect().get_registered_model("tiny").tags[PROMOTED_AT]) > 0


def test_a_better_candidate_replaces_the_champion(submit_run: Submit) -> None:
    submit_run("worse")

    done = submit_run("good")

    assert (done.version, done.former) == ("2", "1")
    assert _champion() == "2"
    assert any("of tiny version 1 on the same images" in reason for reason in done.reasons)


def test_a_worse_candidate_is_refused_and_the_champion_stays(submit_run: Submit) -> None:
    submit_run("good")

    with pytest.raises(GateRefused, match=r"was refused \(champion: .*\); version 1 stays the champion") as refused:
        submit_run("worse")

    assert refused.value.exit_code == 2
    assert _champion() == "1"
    assert registry.find_version(registry.connect(), "tiny", "2") is None
    assert _actions() == [("refuse", "1", None), ("promote", None, "1")]


def test_the_champion_itself_is_left_as_it_is(make_run: Any, digits: Dataset) -> None:
    run_id = make_run("good")
    bundle = export(run_id, dataset=digits)
    submit(bundle, run_id)

    again = submit(bundle, run_id)

    assert again.action == "unchanged"
    assert (again.version, again.former) == ("1", "1")
    assert len(_actions()) == 1


def test_rollback_brings_the_former_champion_back_and_walks_further(submit_run: Submit) -> None:
    for quality in ("worse", "good", "good"):
        submit_run(quality)

    assert rollback("tiny").version == "2"
    assert rollback("tiny").version == "1"
    assert _champion() == "1"
    with pytest.raises(RegistryError, match="no former champion"):
        rollback("tiny")
    assert _actions()[:2] == [("rollback", "2", "1"), ("rollback", "3", "2")]


def test_rollback_refuses_a_version_whose_bundle_is_broken(submit_run: Submit) -> None:
    first = submit_run("worse")
    submit_run("good")
    registry.connect().log_text(first.run_id, "changed", "bundle/model.onnx")

    with pytest.raises(BundleError, match=rf"run {first.run_id}: its bundle is broken: model\.onnx was changed"):
        rollback("tiny")

    assert _champion() == "2"


def test_a_version_that_was_rolled_back_can_be_promoted_again(submit_run: Submit) -> None:
    submit_run("worse")
    submit_run("good")
    rollback("tiny")

    assert promote("tiny", "2").former == "1"
    assert _champion() == "2"


def test_a_worse_version_is_not_promoted_by_its_number_but_a_rollback_may_name_it(submit_run: Submit) -> None:
    submit_run("worse")
    submit_run("good")

    with pytest.raises(Refused):
        promote("tiny", "1")
    assert rollback("tiny", to="1").version == "1"


def test_a_rollback_does_not_lead_to_a_version_that_the_gate_has_never_let_through(
    make_run: Any, digits: Dataset, submit_run: Submit
) -> None:
    submit_run("good")
    run_id = make_run("useless")
    registry.register(export(run_id, dataset=digits), run_id)

    with pytest.raises(RegistryError, match=r"tiny version 2 has never been the champion.*`stride promote tiny 2`"):
        rollback("tiny", to="2")

    assert _champion() == "1"


def test_a_model_without_a_champion_has_nothing_to_roll_back(embedded_tracking: str) -> None:
    with pytest.raises(RegistryError, match="model 'tiny' has no champion"):
        rollback("tiny")


def test_an_interrupted_promotion_is_settled_by_the_next_one(submit_run: Submit) -> None:
    submit_run("worse")
    client = registry.connect()
    crashed = history.begin(
        client, model="tiny", action="promote", from_version="1", to_version="9", run_id="gone", reasons=()
    )
    said: list[str] = []

    submit_run("good", say=said.append)

    assert any("interrupted" in line for line in said)
    states = {entry.id: entry.state for entry in history.history("tiny")}
    assert states.pop(crashed.id) == "abandoned"
    assert set(states.values()) == {"done"}


def test_a_promotion_that_dies_twice_is_still_settled_whole(
    submit_run: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First before the model is stamped as the newest, then while that is made good."""
    submit_run("worse")

    def dies(*_: object) -> None:
        raise RegistryError("the server is away.")

    with monkeypatch.context() as first:
        first.setattr(promotion, "_stamp", dies)
        with pytest.raises(RegistryError, match="away"):
            submit_run("good")
        with pytest.raises(RegistryError, match="away"):
            promotion.settle(registry.connect(), "tiny", silent)
    client = registry.connect()
    before = client.get_registered_model("tiny").tags[PROMOTED_AT]

    promotion.settle(client, "tiny", silent)

    assert client.get_registered_model("tiny").tags[PROMOTED_AT] > before
    assert {entry.state for entry in history.history("tiny")} == {"done"}


def test_nothing_moves_where_the_champion_was_moved_meanwhile(submit_run: Submit) -> None:
    submit_run("worse")
    submit_run("good")
    client = registry.connect()
    one, two = (registry.get_version(client, "tiny", number) for number in ("1", "2"))

    with pytest.raises(RegistryError, match="its champion moved from version 1 to version 2 meanwhile"):
        promotion._move(client, two, one, "promote", ())

    assert len(_actions()) == 2


def test_two_promotions_at_once_end_with_one_champion_and_both_in_the_history(make_run: Any, digits: Dataset) -> None:
    bundles = [export(make_run(quality), dataset=digits) for quality in ("good", "worse")]
    outcomes: list[str] = []

    def run(index: int) -> None:
        bundle = bundles[index]
        try:
            outcomes.append(submit(bundle, bundle.manifest.provenance.run_id).action)
        except Refused:
            outcomes.append("refuse")

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Whichever comes first, the better one is the champion in the end and each sees the other's work.
    client = registry.connect()
    champion = registry.champion(client, "tiny")
    assert champion is not None
    assert champion.run_id == bundles[0].manifest.provenance.run_id
    assert sorted(entry.action for entry in history.history("tiny")) == sorted(outcomes)
    assert {entry.state for entry in history.history("tiny")} == {"done"}


def _hold(ready: Any, release: Any) -> None:
    with locked("tiny"):
        ready.set()
        release.wait(60)


def test_the_lock_holds_across_processes_and_names_itself(home: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(ready, release))
    other.start()
    assert ready.wait(60)
    said: list[str] = []

    try:
        with (
            pytest.raises(RegistryError, match="another promotion has held"),
            locked("tiny", say=said.append, timeout=0.1),
        ):
            pass
    finally:
        release.set()
        other.join()

    assert said == ["waiting for another promotion of tiny"]
    with locked("tiny", timeout=0):
        pass
