"""A challenger beside the champion: on a real registry, with runs fitted in seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from contracts.errors import RegistryError, RequestError
from contracts.registry import BUNDLE_DIGEST, CANARY_PERCENT, SHADOW
from pipelines import challenge as challenges
from pipelines import history, registry, rollout
from pipelines.challenge import challenge, challenge_run, show, stop
from pipelines.export import export
from pipelines.promotion import Promotion, promote
from pipelines.refusal import Refused
from services.training.data.dataset import Dataset
from tests.pipelines.trials import entries, in_registry

Submit = Callable[..., Promotion]
pytestmark = pytest.mark.usefixtures("quick_export")


@pytest.mark.usefixtures("two")
def test_a_challenger_is_named_by_alias_tags_and_history() -> None:
    done = challenge("tiny", "2", percent=12.5, shadow=True)

    assert (done.action, done.champion, done.challenger) == ("challenge", "1", "2")
    assert in_registry() == ("2", {CANARY_PERCENT: "12.5", SHADOW: "1"})
    assert entries()[0] == ("challenge", None, "2")
    (newest, *_) = history.history("tiny")
    assert newest.reasons == ("12.5% of the requests, and a shadow of the others",)
    assert show("tiny").percent == 12.5


@pytest.mark.usefixtures("two")
def test_its_share_can_be_changed_and_the_same_again_changes_nothing() -> None:
    challenge("tiny", "2", percent=5)
    changed = challenge("tiny", "2", percent=50)
    same = challenge("tiny", "2", percent=50)

    assert (changed.action, changed.former, same.action) == ("challenge", "2", "unchanged")
    assert entries()[:2] == [("challenge", "2", "2"), ("challenge", None, "2")]


@pytest.mark.usefixtures("two")
def test_a_stopped_trial_leaves_neither_alias_nor_tags() -> None:
    challenge("tiny", "2")
    stopped = stop("tiny")

    assert (stopped.action, stopped.former, stopped.challenger) == ("stop", "2", None)
    assert in_registry() == (None, {})
    assert entries()[0] == ("dismiss", "2", None)
    with pytest.raises(RegistryError, match="has no challenger, so there is nothing to stop"):
        stop("tiny")


@pytest.mark.usefixtures("two")
def test_the_promotion_of_the_challenger_ends_its_trial() -> None:
    challenge("tiny", "2", shadow=True)
    promote("tiny", "2")

    assert in_registry() == (None, {})
    assert show("tiny").champion == "2"
    assert history.champions(history.read(registry.connect(), "tiny")) == {"1", "2"}


@pytest.mark.usefixtures("two")
def test_a_challenger_never_was_the_champion() -> None:
    """Of the history: a rollback leads to champions, not to what was tried."""
    challenge("tiny", "2")
    found = history.read(registry.connect(), "tiny")

    assert history.former_champions(found, "1") == []
    assert history.champions(found[:1]) == set()


def test_the_promotion_of_another_version_leaves_the_challenger_where_it_is(submit_run: Submit, two: None) -> None:
    challenge("tiny", "2", percent=5)
    submit_run("good")

    assert show("tiny").champion == "3"
    assert in_registry() == ("2", {CANARY_PERCENT: "5", SHADOW: "0"})


def test_a_worse_version_is_no_canary_but_may_be_a_shadow(submit_run: Submit) -> None:
    submit_run("worse")
    submit_run("good")

    with pytest.raises(Refused, match=r"was refused \(champion: .*\); version 2 stays the champion"):
        challenge("tiny", "1")
    assert in_registry() == (None, {})
    assert entries()[0] == ("refuse", "2", None)

    assert challenge("tiny", "1", percent=0, shadow=True).shadow


def test_a_run_is_registered_and_tried_without_being_promoted(
    submit_run: Submit, make_run: Any, digits: Dataset
) -> None:
    submit_run("worse")
    run_id = make_run("good")
    done = challenge_run(export(run_id, dataset=digits), run_id, percent=20)

    assert (done.champion, done.challenger, done.percent) == ("1", "2", 20)


def test_a_run_that_the_gate_refuses_is_not_registered(submit_run: Submit, make_run: Any, digits: Dataset) -> None:
    submit_run("good")
    run_id = make_run("useless")

    with pytest.raises(Refused, match="version 1 stays the champion"):
        challenge_run(export(run_id, dataset=digits), run_id)

    assert registry.versions_of_run(registry.connect(), run_id) == []


def test_a_run_of_a_model_without_a_champion_is_not_registered(
    embedded_tracking: str, make_run: Any, digits: Dataset
) -> None:
    run_id = make_run("good")

    with pytest.raises(RegistryError, match="model 'tiny' has no champion to be challenged"):
        challenge_run(export(run_id, dataset=digits), run_id)

    assert registry.versions_of_run(registry.connect(), run_id) == []


@pytest.mark.parametrize(
    ("percent", "shadow", "told"),
    [(101, False, "--percent is 101; give"), (-1, True, "--percent is -1"), (float("nan"), True, "--percent is nan"),
     (0, False, "nothing would be tried")],
)  # fmt: skip
def test_a_part_that_is_none_is_refused(embedded_tracking: str, percent: float, shadow: bool, told: str) -> None:
    with pytest.raises(RequestError, match=told):
        challenge("tiny", "2", percent=percent, shadow=shadow)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(("version", "told"), [("1", "is the champion already"), ("9", "holds no such version")])
def test_what_cannot_be_a_challenger_is_refused_in_one_sentence(version: str, told: str) -> None:
    with pytest.raises(RegistryError, match=told) as refused:
        challenge("tiny", version)
    assert "\n" not in refused.value.message
    assert in_registry() == (None, {})


def test_a_model_without_a_champion_cannot_be_challenged(
    embedded_tracking: str, make_run: Any, digits: Dataset
) -> None:
    run_id = make_run("good")
    registry.register(export(run_id, dataset=digits), run_id)

    with pytest.raises(RegistryError, match="model 'tiny' has no champion to be challenged"):
        challenge("tiny", "1")
    with pytest.raises(RegistryError, match="neither a champion nor a challenger"):
        show("tiny")


def test_a_challenger_of_other_labels_or_input_cannot_stand_in_the_champions_place(
    make_run: Any, digits: Dataset
) -> None:
    manifest = export(make_run("good"), dataset=digits).manifest
    wider = manifest.input.model_copy(update={"width": 9})

    assert challenges.unlike(manifest, manifest) is None
    other = manifest.model_copy(update={"labels": manifest.labels[::-1]})
    assert str(challenges.unlike(other, manifest)).startswith("its labels ['9', '8'")
    other = manifest.model_copy(update={"input": wider})
    assert challenges.unlike(other, manifest) == "its input 8x9x1 differs from the champion's 8x8x1"


@pytest.mark.usefixtures("two")
def test_a_champion_of_other_labels_is_not_challenged(make_run: Any, digits: Dataset) -> None:
    """Its manifest is replaced in the registry, where a champion of another data set would have its own."""
    client = registry.connect()
    champion = registry.get_version(client, "tiny", "1")
    manifest = registry.fetch_manifest(client, champion)
    changed = manifest.model_copy(update={"labels": manifest.labels[::-1]}).model_dump_json()
    client.log_text(champion.run_id, changed, "bundle/bundle.json")
    client.set_model_version_tag("tiny", "1", BUNDLE_DIGEST, hashlib.sha256(changed.encode()).hexdigest())

    with pytest.raises(RegistryError, match=r"tiny version 2 cannot be tried.* its labels \[.*\] differ.*promote it"):
        challenge("tiny", "2")
    assert in_registry() == (None, {})


@pytest.mark.usefixtures("two")
def test_an_interrupted_trial_is_settled_by_what_the_alias_says() -> None:
    client = registry.connect()
    known: dict[str, Any] = {"model": "tiny", "run_id": "gone", "reasons": ()}
    died = history.begin(client, action="challenge", from_version=None, to_version="2", **known)
    (entry, *_) = history.history("tiny")
    assert (entry.state, "has not moved" in entry.note) == ("pending", True)

    rollout.set_challenger(client, registry.get_version(client, "tiny", "2"), rollout.read(client, "tiny"))
    stopped = history.begin(client, action="dismiss", from_version="2", to_version=None, **known)
    history.settle(client, "tiny")

    states = {entry.id: entry.state for entry in history.history("tiny")}
    assert (states[died.id], states[stopped.id]) == ("done", "abandoned")
