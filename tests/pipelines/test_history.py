from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.registry import CHAMPION
from pipelines import history, registry
from pipelines.history import Entry, former_champions


def _begin(model: str = "tiny", *, to: str | None = "1", action: Any = "promote") -> Entry:
    return history.begin(
        registry.connect(),
        model=model,
        action=action,
        from_version=None,
        to_version=to,
        run_id="r" * 32,
        reasons=("passed floor: 0.9 of 0.5", "passed size: ü"),
    )


def _champion(version: str) -> None:
    client = registry.connect()
    client.create_registered_model("tiny")
    for number in range(int(version)):
        client.create_model_version("tiny", source=f"mlflow-artifacts:/{number}")
    client.set_registered_model_alias("tiny", CHAMPION, version)


def test_there_is_no_history_at_first(embedded_tracking: str) -> None:
    assert history.history("tiny") == []


def test_an_entry_reads_back_as_it_was_written_and_is_json(embedded_tracking: str) -> None:
    written = history.finish(registry.connect(), _begin())

    (read,) = history.history("tiny")

    assert read == written
    assert read.state == "done"
    assert json.loads(json.dumps(read.to_json()))["reasons"][1] == "passed size: ü"


def test_entries_come_newest_first_even_within_a_millisecond(embedded_tracking: str) -> None:
    made = [_begin(to=str(number)) for number in range(1, 6)]

    found = history.history("tiny")

    assert [entry.id for entry in found] == [entry.id for entry in reversed(made)]
    assert all(newer.at > older.at for newer, older in pairwise(found))


def test_each_model_has_its_own_history_and_no_name_gives_all(embedded_tracking: str) -> None:
    _begin("tiny")
    _begin("other")

    assert [entry.model for entry in history.history("other")] == ["other"]
    assert {entry.model for entry in history.history()} == {"tiny", "other"}


@pytest.mark.parametrize(("champion", "told"), [("1", "has not moved"), ("2", "has moved")])
def test_an_entry_that_was_not_closed_is_reported(embedded_tracking: str, champion: str, told: str) -> None:
    _begin(to="2")
    _champion(champion)

    (entry,) = history.history("tiny")

    assert entry.state == "pending"
    assert told in entry.note


@pytest.mark.parametrize(("champion", "state"), [("1", "abandoned"), ("2", "done")])
def test_an_interrupted_entry_is_settled_by_what_the_alias_says(
    embedded_tracking: str, champion: str, state: str
) -> None:
    _begin(to="2")
    _champion(champion)

    (settled,) = history.settle(registry.connect(), "tiny")

    (entry,) = history.history("tiny")
    assert entry.state == settled.state == state
    assert "interrupted" in entry.note
    assert history.settle(registry.connect(), "tiny") == []


Step = tuple[Literal["promote", "refuse", "rollback"], str | None]


def _entries(*steps: Step) -> list[Entry]:
    made = [
        Entry(
            id=str(number),
            model="tiny",
            action=action,
            from_version=None,
            to_version=to,
            run_id="",
            reasons=(),
            at="",
            user="",
            state="done",
        )
        for number, (action, to) in enumerate(steps)
    ]
    return made[::-1]


def test_rollbacks_walk_back_one_by_one() -> None:
    promoted: list[Step] = [("promote", "1"), ("promote", "2"), ("promote", "3")]

    assert former_champions(_entries(*promoted), "3") == ["2", "1"]
    assert former_champions(_entries(*promoted, ("rollback", "2")), "2") == ["1"]
    assert former_champions(_entries(*promoted, ("rollback", "2"), ("rollback", "1")), "1") == []


def test_a_promotion_after_a_rollback_stands_on_what_was_rolled_back_to() -> None:
    entries = _entries(("promote", "1"), ("promote", "2"), ("rollback", "1"), ("refuse", None), ("promote", "3"))

    assert former_champions(entries, "3") == ["1"]


def test_an_alias_that_was_moved_by_hand_goes_back_to_what_stride_promoted_last() -> None:
    assert former_champions(_entries(("promote", "1"), ("promote", "2")), "9") == ["2", "1"]


@given(st.lists(st.integers(1, 5), max_size=8))
def test_the_current_champion_is_never_its_own_former_one(promoted: list[int]) -> None:
    entries = _entries(*(("promote", str(number)) for number in promoted))

    for current in map(str, promoted):
        assert current not in former_champions(entries, current)
