"""Two real workers, started by torch's agent: against one worker, and with one of them killed."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from mlflow.tracking import MlflowClient

from contracts import places
from contracts.errors import DataError, RecipeError
from contracts.recipe import Recipe, parse
from services.training.distributed import launch as module
from services.training.distributed.launch import launch
from services.training.runs import load_run
from services.training.train import train
from services.training.train_result import TrainResult

EPOCHS = 4


def small(**parts: Any) -> Recipe:
    content: dict[str, Any] = {
        "data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
        "model": {
            "kind": "convnet",
            "blocks": [{"filters": 8, "padding": "same", "norm": "batch", "dropout": 0.1}],
            "head": {"units": [16], "dropout": 0.2},
        },
        "augmentation": {"shift": 0.1, "mixup": 0.2},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "fit": {"epochs": EPOCHS, "batch_size": 64, "precision": "fp32", "ema": 0.9, "restore_best": False},
        **parts,
    }
    return parse(content, name="together")


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")
    monkeypatch.setenv("STRIDE_CHECKPOINT_SECONDS", "0.05")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> tuple[TrainResult, dict[str, Any]]:
    """The fit of one worker, and its weights."""
    home = tmp_path_factory.mktemp("alone")
    shutil.copy(migrated_database, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRIDE_HOME", str(home))
        patch.setenv("STRIDE_DEVICE", "cpu")
        result = train(small(), progress=False)
        return result, load_run(result.run_id).graph.state_dict()


def check_same(result: TrainResult, alone: tuple[TrainResult, dict[str, Any]]) -> None:
    """One finished run of two workers with every epoch once, and the weights of one worker's to rounding."""
    expected, weights = alone
    assert (result.workers, result.epochs) == (2, EPOCHS)
    client = MlflowClient(places.tracking_uri())
    experiment = client.get_experiment_by_name("together")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (result.run_id, "FINISHED")
    assert run.data.tags["stride.workers"] == "2"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "validation/loss")]
    assert steps == list(range(1, EPOCHS + 1))
    for name, value in load_run(result.run_id).graph.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-3, atol=1e-4)
    assert result.validation_loss == pytest.approx(expected.validation_loss, rel=1e-3)
    assert list((places.home() / "checkpoints").iterdir()) == []


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("embedded_tracking")
def test_a_killed_worker_costs_a_restart_and_two_workers_come_to_the_result_of_one(
    alone: tuple[TrainResult, dict[str, Any]], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    threading.Thread(target=_kill_a_worker, args=(home, 1), daemon=True).start()
    with caplog.at_level(logging.WARNING):
        result = launch(small(), workers=2, progress=False)
    check_same(result, alone)
    assert result.resumed == 1
    said = [record.message for record in caplog.records if record.name == module.__name__]
    assert said == ["worker 1 is lost (SIGKILL): all 2 go on from the last checkpoint (restart 1 of 3)"]
    again = launch(small(), workers=2, progress=False)
    assert (again.reused, again.run_id) == (True, result.run_id)


def _kill_a_worker(home: Path, rank: int) -> None:
    end = time.monotonic() + 300
    while not list((home / "checkpoints").glob("*/*.safetensors")) and time.monotonic() < end:
        time.sleep(0.002)
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # a child of another test, that has ended
            if process.environ().get("RANK") == str(rank):
                process.kill()


@pytest.mark.usefixtures("embedded_tracking")
def test_what_ends_the_fit_of_one_worker_ends_that_of_two_with_the_same_sentence_and_no_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = {"height": 8, "width": 8, "channels": 1}
    nowhere = small(data={"dataset": "folder", "path": str(tmp_path / "nowhere"), "image": image})
    with pytest.raises(DataError, match=r"nowhere"), caplog.at_level(logging.WARNING):
        launch(nowhere, workers=2, progress=False)
    assert caplog.records == []


def test_more_workers_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "choose_device", lambda: ("cuda", "a GPU", "for the test"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match=r"^--workers is 2, but one GPU is here and each worker takes one; give 1 at"):
        launch(small(), workers=2)


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.gpu
@pytest.mark.usefixtures("embedded_tracking", "handlers")
def test_two_gpus_come_to_the_result_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    monkeypatch.setenv("STRIDE_DEVICE", "cuda")
    recipe = small(model={"kind": "convnet", "blocks": [{"filters": 8, "padding": "same", "norm": "batch"}]})
    expected = train(recipe, progress=False)
    result = launch(recipe, workers=2, force=True, progress=False)
    assert (result.device, result.workers) == ("cuda", 2)
    assert result.validation_loss == pytest.approx(expected.validation_loss, rel=0.02)
    assert json.loads(json.dumps(result.to_json()))["workers"] == 2
