from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from contracts import places
from contracts.errors import DataError, DeviceError, FitError, RegistryError
from contracts.images import encode_png
from contracts.recipe import Recipe, parse
from services.training.calibration import fit_temperature, logits_of
from services.training.data import load
from services.training.device import Plan
from services.training.evaluate import predict
from services.training.runs import load_run
from services.training.train import train
from services.training.train_result import TrainResult


def small(**parts: Any) -> Recipe:
    content: dict[str, Any] = {
        "data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
        "model": {"kind": "convnet", "blocks": [{"filters": 8, "padding": "same", "norm": "batch"}]},
        "optimizer": {"lr": 0.01},
        "fit": {"epochs": 2, "batch_size": 64, "precision": "fp32"},
        **parts,
    }
    return parse(content, name="small")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> tuple[Path, TrainResult]:
    """One real run on the digits, in a home of its own."""
    home = tmp_path_factory.mktemp("home")
    shutil.copy(migrated_database, home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STRIDE_HOME", str(home))
        patch.setenv("STRIDE_DEVICE", "cpu")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return home, train(small(), progress=False)


@pytest.fixture
def trained_home(trained: tuple[Path, TrainResult], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRIDE_HOME", str(trained[0]))
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")
    return trained[0]


@pytest.mark.usefixtures("trained_home")
def test_a_run_holds_metrics_by_epoch_and_results_under_the_keys_that_every_run_has(
    trained: tuple[Path, TrainResult],
) -> None:
    client = MlflowClient(places.tracking_uri())
    run = client.get_run(trained[1].run_id)
    per_epoch = {"train/loss", "train/accuracy", "validation/loss", "validation/accuracy", "lr"}
    results = {"best/epoch", "best/validation_accuracy", "best/validation_loss", "test/accuracy", "test/loss"}
    assert per_epoch | results | {"images_per_second", "epoch_seconds", "fit/seconds"} <= set(run.data.metrics)
    assert [m.step for m in client.get_metric_history(run.info.run_id, "validation/loss")] == [1, 2]
    assert run.info.status == "FINISHED"
    tags = run.data.tags
    assert tags["stride.device"] == "cpu"
    assert tags["stride.device_reason"] == "STRIDE_DEVICE=cpu"
    assert tags["stride.precision_reason"] == "the recipe says so"
    assert len(tags["stride.data_fingerprint"]) >= 32


@pytest.mark.usefixtures("trained_home")
def test_a_finished_run_is_taken_again_unless_forced(trained: tuple[Path, TrainResult]) -> None:
    again = train(small(), progress=False)
    assert again.reused
    assert again.run_id == trained[1].run_id
    assert again.test_accuracy == trained[1].test_accuracy
    forced = train(small(), force=True, progress=False)
    assert not forced.reused
    assert forced.run_id != again.run_id
    # and, being the same recipe on the CPU, it ends in the same weights
    first, second = load_run(again.run_id).graph.state_dict(), load_run(forced.run_id).graph.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("trained_home")
def test_another_recipe_is_another_run(trained: tuple[Path, TrainResult]) -> None:
    other = train(small(optimizer={"lr": 0.02}), progress=False)
    assert not other.reused
    assert other.run_id != trained[1].run_id


@pytest.mark.usefixtures("trained_home")
def test_the_network_of_a_run_is_rebuilt_with_the_accuracy_that_was_logged(
    trained: tuple[Path, TrainResult],
) -> None:
    run = load_run(trained[1].run_id)
    dataset = load(run.recipe.data)
    assert run.recipe == small()
    assert run.labels == dataset.labels
    assert run.test_fingerprint == dataset.test_fingerprint
    answers = predict(run.graph, dataset.test.images)
    assert float((answers.argmax(1) == dataset.test.labels).mean()) == pytest.approx(trained[1].test_accuracy)


@pytest.mark.usefixtures("trained_home")
def test_the_temperature_is_fitted_on_validation_logged_and_loaded_with_the_network(
    trained: tuple[Path, TrainResult],
) -> None:
    run = load_run(trained[1].run_id)
    temperature = float(run.graph.temperature)
    assert temperature == run.metrics["calibration/temperature"]
    assert temperature != 1
    validation = load(run.recipe.data).validation
    assert temperature == pytest.approx(fit_temperature(logits_of(run.graph, validation.images), validation.labels))
    assert {"test/calibration_error", "test/calibration_error_uncalibrated"} <= set(run.metrics)


@pytest.mark.usefixtures("trained_home")
def test_a_run_holds_image_series_of_what_the_network_sees(trained: tuple[Path, TrainResult]) -> None:
    client = MlflowClient(places.tracking_uri())
    names = [Path(item.path).name.split("+") for item in client.list_artifacts(trained[1].run_id, "images")]
    keys = ("activations-block1", "grad-cam", "filters")
    steps = {(name[0], name[2]) for name in names if name[0] in keys}
    assert steps == {(key, step) for key in keys for step in ("0", "1", "2")}


@pytest.mark.usefixtures("trained_home")
def test_a_run_that_is_not_there_or_was_damaged_is_an_error_in_one_sentence(
    trained: tuple[Path, TrainResult],
) -> None:
    with pytest.raises(RegistryError, match="0123456789abcdef"):
        load_run("0123456789abcdef0123456789abcdef")
    forced = train(small(), force=True, progress=False)
    client = MlflowClient(places.tracking_uri())
    artifacts = Path(client.get_run(forced.run_id).info.artifact_uri.removeprefix("file://"))
    for name in ("recipe.json", "network.json", "weights.safetensors"):
        whole = (artifacts / name).read_bytes()
        (artifacts / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(RegistryError, match=rf"its artifact {name} cannot be read .*; train its recipe again\.$"):
            load_run(forced.run_id)
        (artifacts / name).write_bytes(whole)
    (artifacts / "weights.safetensors").unlink()
    with pytest.raises(RegistryError, match=r"weights\.safetensors cannot be read"):
        load_run(forced.run_id)


@pytest.mark.usefixtures("trained_home")
def test_a_fit_that_fails_is_kept_as_failed_with_the_reason() -> None:
    recipe = small(optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(FitError, match="not finite"):
        train(recipe, progress=False)
    client = MlflowClient(places.tracking_uri())
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (newest,) = client.search_runs([experiment.experiment_id], max_results=1, order_by=["attributes.start_time DESC"])
    assert newest.info.status == "FAILED"
    assert "the loss is not finite" in newest.data.tags["error"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("trained_home")
def test_a_fit_that_fails_takes_its_bar_off_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with pytest.raises(FitError) as caught:
        train(small(optimizer={"name": "sgd", "lr": 1e30}), progress=True)
    assert "img" in terminal.getvalue()
    # While the error is held, as the command does that prints it: what is dropped is closed by the interpreter.
    assert terminal.getvalue().split("\r")[-1] == "", caught


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes, twelve images each."""
    random = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        directory = tmp_path / "here" / "photos" / name
        directory.mkdir(parents=True)
        for index in range(12):
            (directory / f"{index}.png").write_bytes(encode_png(random.integers(0, 256, (8, 8, 1), dtype=np.uint8)))
    return tmp_path / "here" / "photos"


def of_folder(path: str) -> Recipe:
    data = {"dataset": "folder", "path": path, "image": {"height": 8, "width": 8, "channels": 1}}
    return small(data=data, model={"kind": "convnet", "blocks": [{"filters": 2}]}, model_name="photos")


@pytest.mark.usefixtures("trained_home")
def test_a_folder_is_the_same_one_however_its_path_is_written(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(photos)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    first = train(of_folder("photos"), progress=False)
    for path in (str(photos), "./photos/", "../here/photos", "../link", "~/here/photos"):
        again = train(of_folder(path), progress=False)
        assert (again.reused, again.run_id, again.recipe_hash) == (True, first.run_id, first.recipe_hash), path


@pytest.mark.usefixtures("trained_home")
def test_the_recipe_of_a_run_finds_its_folder_from_any_working_directory(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "here")
    result = train(of_folder("photos"), progress=False)
    monkeypatch.chdir("/")
    run = load_run(result.run_id)
    assert run.recipe.data.path == str(photos)
    assert load(run.recipe.data).fingerprint == run.data_fingerprint
    assert run.recipe.digest() == result.recipe_hash


def test_nothing_is_logged_where_device_or_data_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_HOME", str(tmp_path / "home"))
    folder = {
        "dataset": "folder",
        "path": str(tmp_path / "nowhere"),
        "image": {"height": 8, "width": 8, "channels": 1},
    }
    with pytest.raises(DataError, match="nowhere"):
        train(small(data=folder), progress=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("STRIDE_DEVICE", "cuda")
    with pytest.raises(DeviceError):
        train(small(), progress=False)
    assert not (tmp_path / "home" / "mlflow.db").exists()


@pytest.mark.usefixtures("trained_home")
def test_the_callers_random_numbers_stay_as_they_were(trained: tuple[Path, TrainResult]) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    load_run(trained[1].run_id)
    train(small(), force=True, progress=False)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.usefixtures("trained_home")
def test_the_result_is_json(trained: tuple[Path, TrainResult]) -> None:
    content = json.loads(json.dumps(trained[1].to_json()))
    assert {"run_id", "test_accuracy", "test_loss", "images_per_second", "epochs", "seconds", "device"} <= set(content)


@pytest.mark.usefixtures("trained_home")
def test_a_run_holds_how_its_steps_were_computed(trained: tuple[Path, TrainResult]) -> None:
    result = trained[1]
    client = MlflowClient(places.tracking_uri())
    plan = Plan.from_json(json.loads(Path(client.download_artifacts(result.run_id, "plan.json")).read_text()))
    assert plan.summary == result.plan
    assert (plan.device, plan.precision) == (result.device, result.precision)
    tags = client.get_run(result.run_id).data.tags
    assert tags["stride.features"] == "no: the base is fitted, too"
    assert "stride.candidates" not in tags
