from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.sweeps import search, space
from pipelines.sweeps.ledger import Ledger, Trial
from pipelines.sweeps.search import StudySearch

SPACE = space.parse(["optimizer.lr=loguniform(1e-4, 1e-1)", "fit.batch_size=choice(32, 64)"])


def make(ledger: Ledger, *, trials: int = 4, ended: list[Trial] | None = None) -> StudySearch:
    return StudySearch(
        ledger,
        SPACE,
        trials=trials,
        mode="max",
        seed=0,
        config=lambda trial: {"number": trial.number, **trial.values},
        ended=(ended if ended is not None else []).append,
    )


def suggest(searching: StudySearch, trial_id: str) -> dict[str, Any]:
    found = searching.suggest(trial_id)
    assert isinstance(found, dict)
    return found


def test_a_trial_is_written_down_before_it_starts(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "trials.jsonl")
    found = suggest(make(book), "a")
    kept = Ledger(book.path).trials[0]
    assert found == {"number": 0, **kept.values}
    assert 1e-4 <= kept.values["optimizer.lr"] <= 1e-1
    assert kept.values["fit.batch_size"] in (32, 64)


def test_what_becomes_of_trials_is_in_the_ledger(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "trials.jsonl")
    ended: list[Trial] = []
    searching = make(book, ended=ended)
    for name in "abcd":
        suggest(searching, name)
    assert searching.suggest("e") == "FINISHED"
    searching.on_trial_result("a", {"epoch": 1, "value": 0.8})
    searching.on_trial_complete("a", {"epoch": 3, "value": 0.9, "run_id": "r0", "done": True})
    searching.on_trial_result("b", {"epoch": 1, "value": 0.1})
    searching.on_trial_complete("b", {"epoch": 2, "value": 0.2})
    searching.on_trial_complete("c", {"epoch": 1, "problem": "the loss is not finite.", "diverged": True})
    searching.on_trial_complete("d", error=True)
    read = Ledger(book.path).trials
    assert (read[0].state, read[0].value, read[0].run_id) == ("finished", 0.9, "r0")
    assert (read[1].state, read[1].epochs) == ("stopped", {1: 0.1, 2: 0.2})
    assert (read[2].state, read[2].problem) == ("failed", "the loss is not finite.")
    assert read[3].state == "running"  # nothing is wrong with its values: it is tried again
    assert searching.problems == {3: None}
    assert [trial.number for trial in ended] == [0, 1, 2]


def test_a_killed_sweep_takes_up_what_was_running_and_begins_no_more_than_were_asked_for(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "trials.jsonl")
    before = make(book)
    running = [suggest(before, name) for name in "abc"]
    before.on_trial_complete("b", {"epoch": 3, "value": 0.9, "run_id": "r1", "done": True})
    after = make(Ledger(book.path))
    taken_up = [suggest(after, name) for name in "xy"]
    assert taken_up == [running[0], running[2]]
    assert suggest(after, "z")["number"] == 3
    assert after.suggest("w") == "FINISHED"


def test_fewer_trials_than_were_begun_are_enough(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "trials.jsonl")
    before = make(book)
    for name in "abc":
        suggest(before, name)
    after = make(Ledger(book.path), trials=2)
    assert [suggest(after, name)["number"] for name in "xy"] == [0, 1]
    assert after.suggest("z") == "FINISHED"


def test_the_search_learns_from_what_was_found(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "trials.jsonl")
    searching = make(book, trials=60)
    for number in range(60):
        values = suggest(searching, str(number))
        worth = -abs(values["optimizer.lr"] - 0.03)
        searching.on_trial_complete(str(number), {"epoch": 1, "value": worth, "run_id": "r", "done": True})
    rates = [trial.values["optimizer.lr"] for trial in book.trials.values()]
    near = [abs(rate - 0.03) < 0.015 for rate in rates]
    assert sum(near[-20:]) > sum(near[:20]) + 3


def test_importance_finds_what_matters_and_says_nothing_where_it_cannot_know(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "trials.jsonl")
    searching = make(book, trials=30)
    for number in range(30):
        values = suggest(searching, str(number))
        worth = float(values["fit.batch_size"] == 64) + 0.1 * values["optimizer.lr"]
        searching.on_trial_complete(str(number), {"epoch": 1, "value": worth, "run_id": "r", "done": True})
    trials = list(book.trials.values())
    shares = search.importance(trials, SPACE, "max")
    assert next(iter(shares)) == "fit.batch_size"
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["fit.batch_size"] > 0.8
    assert search.importance(trials[:3], SPACE, "max") == {}
    alike = [Trial(trial.number, trial.values, trial.drawn, state="finished", value=0.5) for trial in trials]
    assert search.importance(alike, SPACE, "max") == {}
