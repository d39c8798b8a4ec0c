"""Runs on real SQLite stores; the ones over HTTP are in tests/services/tracking/test_server.py."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import FitError, RecipeError, RegistryError
from contracts.recipe import Recipe
from services.training import tracking
from services.training.data.dataset import Dataset
from services.training.mlflow_client import connect


def _artifacts(home: Path, run_id: str, model_name: str = "tiny") -> Path:
    return home / "artifacts" / model_name / run_id / "artifacts"


def _recorded(run_id: str) -> Any:
    inputs = tracking.get_run(run_id).inputs
    assert inputs is not None
    (recorded,) = inputs.dataset_inputs
    return recorded.dataset


def test_importing_the_module_imports_no_mlflow() -> None:
    code = "import sys, services.training.tracking, services.training.report\n"
    code += "assert not {'mlflow', 'matplotlib', 'sklearn', 'torch'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_that_ends_well_is_finished_and_holds_what_was_logged(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe, tiny_dataset: Dataset
) -> None:
    with tracking.open_run(tiny_recipe, tags={"stride.device": "cpu"}) as run:
        run.dataset(tiny_dataset)
        run.epoch(1, {"train/loss": 2.0, "validation/loss": 1.5})
        run.epoch(2, {"train/loss": 1.0, "validation/loss": float("nan")})
        run.metrics({"test/accuracy": 0.5})
        run.file("weights.bin", b"\x00\x01")
        run.file("deep/er/text.txt", "höhe")
        run.note("# card")
    found = tracking.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name.startswith("tiny-")
    assert found.data.metrics["train/loss"] == 1.0
    assert found.data.metrics["test/accuracy"] == 0.5
    assert found.data.tags["stride.device"] == "cpu"
    assert found.data.tags["stride.recipe"] == "tiny"
    assert found.data.tags["stride.recipe_hash"] == tiny_recipe.digest()
    assert found.data.tags["stride.data_fingerprint"] == tiny_dataset.fingerprint
    assert found.data.tags["mlflow.note.content"] == "# card"
    assert {"mlflow.user", "mlflow.source.name", "stride.code_version"} <= set(found.data.tags)
    assert found.data.params["model.blocks.0.filters"] == "4"
    assert (_artifacts(home, run.run_id) / "weights.bin").read_bytes() == b"\x00\x01"
    assert (_artifacts(home, run.run_id) / "deep/er/text.txt").read_text() == "höhe"


def test_an_opened_run_is_announced_to_who_waits_for_it(
    embedded_tracking: str,
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("STRIDE_RUNS_FILE", str(tmp_path / "runs"))
    with tracking.open_run(tiny_recipe, tags={}) as run:
        assert (tmp_path / "runs").read_text() == f"{run.run_id}\n"
    monkeypatch.setenv("STRIDE_RUNS_FILE", str(tmp_path / "none" / "runs"))
    with tracking.open_run(tiny_recipe, tags={}):
        assert "is not announced in STRIDE_RUNS_FILE" in caplog.text  # and the fit goes on


def test_the_steps_of_a_metric_are_its_epochs(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        for epoch in (1, 2, 3):
            run.epoch(epoch, {"lr": 0.1 / epoch})
    history = connect().get_metric_history(run.run_id, "lr")
    assert [(point.step, point.value) for point in history] == [(1, 0.1), (2, 0.05), (3, pytest.approx(0.1 / 3))]


def test_the_data_set_is_recorded_with_its_digest_counts_and_shape(
    embedded_tracking: str, tiny_recipe: Recipe, tiny_dataset: Dataset
) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.dataset(tiny_dataset)
    recorded = _recorded(run.run_id)
    assert recorded.name == "tiny"
    assert recorded.digest == tiny_dataset.fingerprint[:36]
    profile = json.loads(recorded.profile)
    assert (profile["train"], profile["validation"], profile["test"], profile["classes"]) == (18, 6, 12, 3)
    features = json.loads(json.loads(recorded.schema)["mlflow_tensorspec"]["features"])
    assert features[0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, 8, 8, 1]}


def test_a_folder_is_recorded_with_its_path(
    embedded_tracking: str, make_recipe: Any, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    image = {"height": 8, "width": 8, "channels": 1}
    recipe = make_recipe(data={"dataset": "folder", "path": str(tmp_path), "image": image})
    with tracking.open_run(recipe, tags={}) as run:
        run.dataset(tiny_dataset)
    recorded = _recorded(run.run_id)
    assert json.loads(recorded.source) == {"uri": str(tmp_path)}


def test_an_error_in_the_block_fails_the_run_with_its_message_and_is_raised_on(
    embedded_tracking: str, tiny_recipe: Recipe
) -> None:
    with pytest.raises(FitError, match="not finite"), tracking.open_run(tiny_recipe, tags={}) as run:
        raise FitError("the loss is not finite.")
    found = tracking.get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == "the loss is not finite."


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_in_the_block_kills_the_run(
    embedded_tracking: str, tiny_recipe: Recipe, stop: type[BaseException]
) -> None:
    with pytest.raises(stop), tracking.open_run(tiny_recipe, tags={}) as run:
        raise stop
    assert tracking.get_run(run.run_id).info.status == "KILLED"


def test_every_run_has_system_metrics_however_short(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        pass
    assert "system/cpu_utilization_percentage" in tracking.get_run(run.run_id).data.metrics


def test_a_table_is_columns_and_rows_that_the_page_knows_of(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe
) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        for _ in range(2):
            run.table("tables/a.json", {"class": ["x", "y"], "support": [1, 2]})
    content = json.loads((_artifacts(home, run.run_id) / "tables/a.json").read_text())
    assert content == {"columns": ["class", "support"], "data": [["x", 1], ["y", 2]]}
    logged = json.loads(tracking.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"])
    assert logged == [{"path": "tables/a.json", "type": "table"}]


def test_a_note_longer_than_a_tag_is_cut_at_a_line(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.note("a line of text\n" * 2000)
    note = tracking.get_run(run.run_id).data.tags["mlflow.note.content"]
    assert len(note) <= 8000
    assert "a line of text\n\n… (cut here" in note


def test_more_parameters_and_tags_than_one_request_takes_are_logged(embedded_tracking: str, make_recipe: Any) -> None:
    recipe = make_recipe(model={"kind": "convnet", "blocks": [{"filters": 4, "pool": "none"}] * 12})
    with tracking.open_run(recipe, tags={f"tag{index}": "x" for index in range(150)}) as run:
        run.tags({f"more{index}": "x" * 9000 for index in range(150)})
    found = tracking.get_run(run.run_id)
    assert found.data.params["model.blocks.11.filters"] == "4"
    assert found.data.tags["tag149"] == "x"
    assert len(found.data.tags["more149"]) == 8000


def test_a_finished_run_is_found_by_recipe_data_and_code(
    embedded_tracking: str, make_recipe: Any, tiny_dataset: Dataset
) -> None:
    recipe = make_recipe()
    identity: dict[str, Any] = {"data_fingerprint": tiny_dataset.fingerprint, "code_version": "1"}
    assert tracking.find_finished(recipe, **identity) is None
    for _ in range(2):
        with tracking.open_run(recipe, tags={"stride.code_version": "1"}) as run:
            run.dataset(tiny_dataset)
        time.sleep(0.002)  # the order is by milliseconds
    assert tracking.find_finished(recipe, **identity) == run.run_id
    assert tracking.find_finished(recipe, **{**identity, "code_version": "2"}) is None
    assert tracking.find_finished(recipe, **{**identity, "data_fingerprint": "x"}) is None
    assert tracking.find_finished(make_recipe(fit={"seed": 1}), **identity) is None


def test_a_failed_or_open_run_is_not_found(embedded_tracking: str, tiny_recipe: Recipe, tiny_dataset: Dataset) -> None:
    identity: dict[str, Any] = {"data_fingerprint": tiny_dataset.fingerprint, "code_version": "1"}
    with tracking.open_run(tiny_recipe, tags={"stride.code_version": "1"}) as run:
        run.dataset(tiny_dataset)
        assert tracking.find_finished(tiny_recipe, **identity) is None
    assert tracking.find_finished(tiny_recipe, **identity) == run.run_id
    connect().set_terminated(run.run_id, "FAILED")
    assert tracking.find_finished(tiny_recipe, **identity) is None


def test_a_run_that_does_not_exist_is_named(embedded_tracking: str) -> None:
    for run_id in ("0" * 32, "../x"):
        with pytest.raises(RegistryError, match="has no such run"):
            tracking.get_run(run_id)


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(
    tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("STRIDE_TRACKING_WAIT", text)
    with pytest.raises(RecipeError, match=f"STRIDE_TRACKING_WAIT is '{text}'"), tracking.open_run(tiny_recipe, tags={}):
        pass
