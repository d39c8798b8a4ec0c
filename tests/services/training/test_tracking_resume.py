"""Runs that were killed, failed or are still open: which go on, and what they hold then."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import pytest

from contracts.errors import FitError
from contracts.recipe import Recipe
from services.training import journal_sync, tracking
from services.training.journal import Journal
from services.training.journal_lock import Busy
from services.training.mlflow_client import connect
from services.training.run import Run
from services.training.tracking import NotResumable


def _killed(recipe: Recipe, *, epochs: int, home: Path, tmp_path: Path, after: str = "") -> str:
    """The id of a run whose process was killed (-9) after it had logged some epochs; `after` is run before that."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import json, os, signal, sys\n"
        "from contracts.recipe import parse\n"
        "from services.training.tracking import open_run\n"
        "recipe = parse(json.loads(sys.argv[1]), name='tiny')\n"
        "with open_run(recipe, tags={'stride.code_version': '1'}) as run:\n"
        f"    for epoch in range(1, {epochs} + 1):\n"
        "        run.epoch(epoch, {'train/loss': 1 / epoch})\n"
        f"    {after or 'pass'}\n"
        "    print(run.run_id, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "STRIDE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[3])}
    content = recipe.model_dump_json(exclude={"name"}, exclude_none=True)
    done = subprocess.run(
        [sys.executable, str(script), content], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    return done.stdout.strip()


def _epochs(run_id: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect().get_metric_history(run_id, "train/loss")]


def test_a_resumed_run_goes_on_and_has_each_epoch_once(
    embedded_tracking: str, home: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    """Killed between the journal and MLflow: what was logged is there, what is repeated is not there twice."""
    run_id = _killed(tiny_recipe, epochs=5, home=home, tmp_path=tmp_path, after="run.tags({'last': 'word'})")
    assert tracking.get_run(run_id).info.status == "RUNNING"
    with tracking.open_run(tiny_recipe, tags={"stride.device": "cpu"}, resume=run_id) as run:
        assert run.run_id == run_id
        for epoch in range(4, 8):  # the checkpoint was of epoch 3
            run.epoch(epoch, {"train/loss": 1 / epoch})
    assert _epochs(run_id) == [(epoch, 1 / epoch) for epoch in range(1, 8)]
    found = tracking.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["last"] == "word"
    assert found.data.tags["stride.device"] == "cpu"
    assert not list((home / "journal").iterdir())


def test_a_run_that_failed_can_go_on_and_then_has_no_error(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe
) -> None:
    with pytest.raises(FitError), tracking.open_run(tiny_recipe, tags={}) as run:
        _one_epoch_and_then_none(run)
    assert tracking.get_run(run.run_id).data.tags["error"] == "no disk."
    with tracking.open_run(tiny_recipe, tags={}, resume=run.run_id):
        assert tracking.get_run(run.run_id).info.status == "RUNNING"
        run_again = tracking.get_run(run.run_id)
        assert run_again.info.run_name == run.name
    with tracking.open_run(tiny_recipe, tags={}) as other:
        other.epoch(1, {"train/loss": 1.0})
    found = tracking.get_run(run.run_id)
    assert "error" not in found.data.tags
    assert found.info.status == "FINISHED"


def _one_epoch_and_then_none(run: Run) -> None:
    run.epoch(1, {"train/loss": 1.0})
    raise FitError("no disk.")


def test_what_another_machine_has_logged_is_not_logged_again(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe
) -> None:
    """Its journal is not here: MLflow says how far it was."""
    with pytest.raises(KeyboardInterrupt), tracking.open_run(tiny_recipe, tags={}) as run:
        _two_epochs_and_stop(run)
    assert not list((home / "journal").iterdir())
    with tracking.open_run(tiny_recipe, tags={}, resume=run.run_id) as again:
        for epoch in (2, 3):
            again.epoch(epoch, {"train/loss": 1 / epoch, "lr": 0.1})
    assert _epochs(run.run_id) == [(epoch, 1 / epoch) for epoch in (1, 2, 3)]
    assert [point.step for point in connect().get_metric_history(run.run_id, "lr")] == [2, 3]


def _two_epochs_and_stop(run: Run) -> None:
    for epoch in (1, 2):
        run.epoch(epoch, {"train/loss": 1 / epoch})
    raise KeyboardInterrupt


def test_what_another_process_sends_while_the_journal_is_waited_for_is_not_logged_again(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    experiment = client.create_experiment("tiny", str(home / "artifacts"))
    run_id = client.create_run(experiment, tags={tracking.RECIPE_HASH: tiny_recipe.digest()}).info.run_id
    with Journal.open(run_id) as kept:
        kept.append("metrics", {"metrics": [["train/loss", 1.0, 1, 1]]})
        kept.append("status", {"status": "KILLED", "at": 1})

    class Waited(Journal):
        @classmethod
        def open(cls, run_id: str, **options: Any) -> Self:
            assert [result.state for result in journal_sync.sync()] == ["sent"]
            return super().open(run_id, **options)

    monkeypatch.setattr(tracking, "Journal", Waited)
    with tracking.open_run(tiny_recipe, tags={}, resume=run_id) as run:
        for epoch in (1, 2):
            run.epoch(epoch, {"train/loss": 1 / epoch})
    assert _epochs(run_id) == [(1, 1.0), (2, 0.5)]


def test_the_system_metrics_of_a_resumed_run_go_on(
    embedded_tracking: str, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with pytest.raises(KeyboardInterrupt), tracking.open_run(tiny_recipe, tags={}) as run:
        _wait_and_stop()
    with tracking.open_run(tiny_recipe, tags={}, resume=run.run_id):
        time.sleep(0.5)
    points = connect().get_metric_history(run.run_id, "system/cpu_utilization_percentage")
    steps = [point.step for point in sorted(points, key=lambda point: point.timestamp)]
    assert steps == sorted(set(steps))


def _wait_and_stop() -> None:
    time.sleep(0.5)
    raise KeyboardInterrupt


def test_a_run_that_cannot_go_on_says_why(embedded_tracking: str, make_recipe: Any, home: Path) -> None:
    recipe = make_recipe()
    with tracking.open_run(recipe, tags={}) as finished:
        pass
    with pytest.raises(KeyboardInterrupt), tracking.open_run(recipe, tags={}) as stopped:
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), tracking.open_run(recipe, tags={}) as deleted:
        raise KeyboardInterrupt
    connect().delete_run(deleted.run_id)
    other = make_recipe(fit={"seed": 1})
    for run_id, of, reason in (
        ("0" * 32, recipe, "has no such run"),
        (finished.run_id, recipe, "is FINISHED"),
        (deleted.run_id, recipe, "was deleted"),
        (stopped.run_id, other, "is of recipe"),
    ):
        with pytest.raises(NotResumable, match=reason), tracking.open_run(of, tags={}, resume=run_id):
            pass
    assert tracking.get_run(stopped.run_id).info.status == "KILLED"


def test_a_run_that_is_open_elsewhere_is_not_opened_twice(
    embedded_tracking: str, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_WAIT_LOCK_S", 0.1)
    with tracking.open_run(tiny_recipe, tags={}) as run:
        with pytest.raises(Busy), tracking.open_run(tiny_recipe, tags={}, resume=run.run_id):
            pass
        run.epoch(1, {"train/loss": 1.0})
    assert tracking.get_run(run.run_id).info.status == "FINISHED"
