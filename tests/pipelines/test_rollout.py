"""pipelines.rollout on a real registry: a challenger is whole or none, whenever the process that names it is killed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from contracts.registry import CANARY_PERCENT, CHALLENGER, SHADOW, Rollout
from pipelines import history, promotion, registry, rollout

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

WRITES = (
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_registered_model_tag",
    "delete_registered_model_tag",
)
Part = tuple[str | None, Rollout]
"""The challenger's version, and how it takes part."""


class Killed(BaseException):
    """As SIGKILL: nothing that follows it runs, and nobody expects it."""


def killed_at(write: int) -> MlflowClient:
    """A client whose process is killed right before this write, counted from 0."""
    client = registry.connect()
    done = 0

    def guard(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal done
            if done == write:
                raise Killed
            done += 1
            return real(*arguments)

        return call

    for name in WRITES:
        setattr(client, name, guard(getattr(client, name)))
    return client


@pytest.fixture
def three(embedded_tracking: str) -> MlflowClient:
    """A registered model with three versions, of nothing."""
    client = registry.connect()
    client.create_registered_model("tiny")
    for _ in range(3):
        client.create_model_version("tiny", source="runs:/none/bundle")
    return client


def name(client: MlflowClient, version: str | None, part: Rollout) -> None:
    assert version is not None
    rollout.set_challenger(client, registry.get_version(client, "tiny", version), part)


def seen(client: MlflowClient) -> Part:
    """What a service reads: without the alias the tags mean nothing."""
    found = rollout.challenger(client, "tiny")
    return (found.version, rollout.read(client, "tiny")) if found else (None, Rollout())


@pytest.mark.parametrize(
    ("before", "wanted"),
    [
        ((None, Rollout()), ("2", Rollout(12.5, shadow=True))),
        (("3", Rollout(50, shadow=True)), ("2", Rollout(12.5, shadow=False))),
        (("2", Rollout(5, shadow=False)), ("2", Rollout(50, shadow=True))),
        (("2", Rollout(5, shadow=True)), ("2", Rollout(50, shadow=True))),
    ],
    ids=["none before", "another before", "another part", "another share"],
)
def test_a_kill_at_any_write_leaves_the_old_challenger_none_or_the_new_one(
    three: MlflowClient, before: Part, wanted: Part
) -> None:
    version, part = wanted
    assert version is not None
    writes, left = 0, set()
    while True:
        if rollout.challenger(three, "tiny") is not None:
            rollout.remove_challenger(three, "tiny")
        if before[0] is not None:
            name(three, *before)
        try:
            name(killed_at(writes), version, part)
            break
        except Killed:
            left.add(seen(three)[0])
            assert seen(three) in (before, (None, Rollout()))
        name(three, version, part)  # the command again
        assert seen(three) == wanted
        writes += 1
    assert seen(three) == wanted
    assert writes >= 1
    assert left <= {before[0], None}


def test_a_kill_at_any_write_of_its_end_leaves_the_challenger_or_none(three: MlflowClient) -> None:
    part = Rollout(12.5, shadow=True)
    for write in range(3):
        name(three, "2", part)
        with pytest.raises(Killed):
            rollout.remove_challenger(killed_at(write), "tiny")
        assert seen(three) == (("2", part) if write == 0 else (None, Rollout()))


def test_what_a_killed_end_has_left_is_taken_away_by_the_next_command(three: MlflowClient) -> None:
    name(three, "2", Rollout(12.5, shadow=True))
    known: dict[str, Any] = {"model": "tiny", "run_id": "gone", "reasons": ()}
    history.begin(three, action="dismiss", from_version="2", to_version=None, **known)
    with pytest.raises(Killed):
        rollout.remove_challenger(killed_at(1), "tiny")
    assert CANARY_PERCENT in three.get_registered_model("tiny").tags
    promotion.settle(three, "tiny", lambda _: None)
    assert {CANARY_PERCENT, SHADOW}.isdisjoint(three.get_registered_model("tiny").tags)
    assert history.history("tiny")[0].state == "done"


def test_the_history_says_that_a_killed_change_has_taken_the_former_challenger_away(three: MlflowClient) -> None:
    name(three, "3", Rollout(5, shadow=False))
    known: dict[str, Any] = {"model": "tiny", "run_id": "gone", "reasons": ()}
    history.begin(three, action="challenge", from_version="3", to_version="2", **known)
    with pytest.raises(Killed):
        name(killed_at(1), "2", Rollout(50, shadow=True))
    promotion.settle(three, "tiny", lambda _: None)
    (entry,) = history.history("tiny")
    assert entry.state == "abandoned"
    assert entry.note.endswith("the alias had been taken from version 3 and not been given to another")
    assert three.get_registered_model("tiny").aliases.get(CHALLENGER) is None
