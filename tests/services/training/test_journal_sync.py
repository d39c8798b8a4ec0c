"""Runs that ended before MLflow had all of them, embedded; a server that is away is in test_journal_sender.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import RegistryError
from contracts.recipe import Recipe
from services.training import journal, journal_sync, tracking
from services.training.journal import Journal
from services.training.journal_sender import Sender
from services.training.mlflow_client import connect

TAGS = {"stride.data_fingerprint": "d", "stride.code_version": "1"}


@pytest.fixture
def unsent(embedded_tracking: str, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> str:
    """The id of a run that has finished, of which nothing was sent: its thread was never started."""
    with monkeypatch.context() as patched:
        patched.setattr(Sender, "start", lambda _: None)
        patched.setattr(Sender, "stop", lambda _: None)
        patched.setenv("STRIDE_TRACKING_WAIT", "0")
        with tracking.open_run(tiny_recipe, tags=TAGS) as run:
            run.epoch(1, {"train/loss": 0.5})
            run.file("weights.bin", b"x" * 1000)
    return run.run_id


def test_where_nothing_is_kept_no_server_is_asked(home: Path, monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    assert journal_sync.kept() == []
    assert journal_sync.sync() == []


def test_what_is_kept_is_told_without_a_server(
    unsent: str, home: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    (one,) = journal_sync.kept()
    assert (one.run_id, one.status, one.waits, one.refused) == (unsent, "FINISHED", True, 0)
    assert one.name.startswith("tiny-")
    assert one.tracking == f"sqlite:///{home / 'mlflow.db'}"
    assert one.unsent >= 5
    assert one.bytes > 1000
    assert TAGS.items() <= one.tags.items()


def test_a_kept_run_is_sent_whole_and_closed(unsent: str, home: Path) -> None:
    assert tracking.get_run(unsent).info.status == "RUNNING"
    said: list[str] = []
    (result,) = journal_sync.sync(say=said.append)
    assert (result.run_id, result.state, result.left) == (unsent, "sent", 0)
    assert result.sent >= 5
    assert said == [f"run {unsent}: {result.sent} entries to send"]
    found = tracking.get_run(unsent)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["train/loss"] == 0.5
    assert [item.path for item in connect().list_artifacts(unsent)] == ["weights.bin"]
    assert journal.directories() == []
    assert journal_sync.sync() == []


def test_a_finished_run_is_sent_before_it_is_looked_for(unsent: str, tiny_recipe: Recipe, make_recipe: Any) -> None:
    identity: dict[str, Any] = {"data_fingerprint": "d", "code_version": "1"}
    assert tracking.find_finished(make_recipe(fit={"seed": 1}), **identity) is None
    assert [one.run_id for one in journal_sync.kept()] == [unsent]
    assert tracking.find_finished(tiny_recipe, **identity) == unsent
    assert journal_sync.kept() == []


def test_a_run_that_goes_on_is_left_alone(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.epoch(1, {"train/loss": 0.5})
        assert [result.state for result in journal_sync.sync()] == ["in use"]
        with pytest.raises(RegistryError, match="in use"):
            journal_sync.discard(run.run_id)
    assert tracking.get_run(run.run_id).data.metrics["train/loss"] == 0.5


def test_a_run_that_was_killed_is_sent_and_can_still_go_on(
    embedded_tracking: str, tiny_recipe: Recipe, home: Path
) -> None:
    client = connect()
    created = client.create_run(client.create_experiment("tiny", str(home / "artifacts"))).info
    with Journal.open(created.run_id) as opened:
        opened.append("open", {"run_id": created.run_id, "name": "tiny-1", "tracking": "", "tags": {}})
        opened.append("metrics", {"metrics": [["train/loss", 0.5, 1, 1]]})
    (result,) = journal_sync.sync()
    assert (result.state, result.left) == ("open", 0)
    assert client.get_run(created.run_id).data.metrics == {"train/loss": 0.5}
    assert client.get_run(created.run_id).info.status == "RUNNING"
    (kept,) = journal_sync.kept()
    assert not kept.waits
    (result,) = journal_sync.sync()
    assert (result.state, result.sent) == ("open", 0)
    client.set_terminated(created.run_id, "KILLED")  # as who fits anew does with what will not go on
    (result,) = journal_sync.sync()
    assert result.state == "sent"
    assert client.get_run(created.run_id).info.status == "KILLED"
    assert journal_sync.sync() == []


def test_a_run_of_another_server_is_kept_and_names_it(
    unsent: str, home: Path, migrated_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(migrated_database, home / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'other.db'}")
    (result,) = journal_sync.sync()
    assert result.state == "kept"
    assert result.problem is not None
    assert f"has no such run, it was opened at sqlite:///{home / 'mlflow.db'}" in result.problem
    assert f"--discard {unsent}" in result.problem
    assert [one.run_id for one in journal_sync.kept()] == [unsent]


def test_what_is_refused_stays_and_is_named(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with pytest.raises(RegistryError, match="refuses"), tracking.open_run(tiny_recipe, tags={}) as run:
        run.metrics({"a(b)": 1.0})
    (result,) = journal_sync.sync()
    assert (result.state, result.left) == ("refused", 2)
    assert result.problem is not None
    assert "a(b)" in result.problem


def test_what_is_given_up_is_gone(unsent: str) -> None:
    result = journal_sync.discard(unsent)
    assert result.state == "discarded"
    assert result.left >= 5
    assert journal.directories() == []
    assert tracking.get_run(unsent).info.status == "RUNNING"


@pytest.mark.parametrize("run_id", ["0" * 32, "", ".", "../journal"])
def test_only_a_journal_that_is_there_can_be_given_up(unsent: str, run_id: str) -> None:
    with pytest.raises(RegistryError, match="holds no journal of it"):
        journal_sync.discard(run_id)
    assert [one.run_id for one in journal_sync.kept()] == [unsent]
