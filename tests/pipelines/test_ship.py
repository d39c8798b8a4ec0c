"""The whole way with real fits: the tiny digits recipe takes about a second each."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import BundleError, RecipeError
from contracts.recipe import Recipe, parse
from pipelines import history, registry
from pipelines.ship import ship, stage


@pytest.fixture
def recipe() -> Recipe:
    return _recipe()


def _recipe(name: str = "tiny", **changes: Any) -> Recipe:
    content: dict[str, Any] = {
        "model_name": "tiny",
        "data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
        "model": {"kind": "convnet", "blocks": [{"filters": 8, "padding": "same"}], "head": {"units": [16]}},
        "optimizer": {"name": "adam", "lr": 0.01},
        "fit": {"epochs": 2, "batch_size": 64, "precision": "fp32"},
        "tune": {"seconds": 0.2},
    }
    return parse({**content, **changes}, name=name)


def test_a_recipe_is_shipped_and_a_second_time_nothing_changes(recipe: Recipe, embedded_tracking: str) -> None:
    said: list[str] = []

    first = ship(recipe, progress=False, say=said.append)
    again = ship(recipe, progress=False)

    assert (first.verdict, first.model, first.version, first.former, first.exit_code) == (
        "accepted",
        "tiny",
        "1",
        None,
        0,
    )
    assert first.test_accuracy > 0.5
    assert json.loads(json.dumps(first.to_json()))["runs"][0]["run_id"] == first.run_id
    assert said[0] == "training tiny (1 of 1)"
    assert said[-1] == "the champion of tiny is version 1"
    assert (again.verdict, again.version, again.run_id) == ("unchanged", "1", first.run_id)
    assert again.runs[0]["reused"] is True
    assert "is the champion already" in again.reasons[0]
    assert len(history.history("tiny")) == 1


def test_of_several_recipes_the_best_by_validation_is_shipped(embedded_tracking: str) -> None:
    slow = _recipe("slow", optimizer={"name": "sgd", "lr": 1e-5}, fit={"epochs": 1, "precision": "fp32"})

    done = ship([slow, _recipe()], progress=False)

    assert [run["recipe"] for run in done.runs] == ["slow", "tiny"]
    assert done.run_id == done.runs[1]["run_id"]
    assert done.reasons[0].startswith("tiny is the best of 2 by validation accuracy")


def test_a_worse_recipe_is_refused_with_exit_code_2_and_the_champion_stays(
    recipe: Recipe, embedded_tracking: str
) -> None:
    champion = ship(recipe, progress=False)
    # Worse than the champion, and better than naming one digit always: that would be refused for itself.
    worse = _recipe("worse", optimizer={"name": "adam", "lr": 0.003}, fit={"epochs": 1, "precision": "fp32"})

    done = ship(worse, progress=False)

    assert (done.verdict, done.exit_code, done.version) == ("refused", 2, "1")
    assert done.reasons[0].startswith("failed champion")
    found = registry.champion(registry.connect(), "tiny")
    assert found is not None
    assert found.run_id == champion.run_id


def test_a_network_that_learned_nothing_is_refused_with_exit_code_2_though_no_floor_is_set(
    embedded_tracking: str,
) -> None:
    # The first step of this size kills every unit of the dense layer: all images get the same answer from then on.
    dead = _recipe("dead", optimizer={"name": "sgd", "lr": 1e4}, fit={"epochs": 1, "precision": "fp32"})

    done = ship(dead, progress=False)

    assert (done.verdict, done.exit_code, done.version) == ("refused", 2, None)
    assert done.reasons[0].startswith(f"failed baseline: test accuracy {done.test_accuracy:.4f} is not above 0.1")
    assert all(reason.startswith("passed") for reason in done.reasons[1:])


def test_a_champion_that_was_corrupted_is_not_called_unchanged(recipe: Recipe, embedded_tracking: str) -> None:
    done = ship(recipe, progress=False)
    registry.connect().log_text(done.run_id, "changed", "bundle/model.onnx")

    with pytest.raises(BundleError, match=rf"^export run {done.run_id}: .*model\.onnx was changed"):
        ship(recipe, progress=False)


def test_what_is_shipped_has_been_tuned_once(recipe: Recipe, embedded_tracking: str, tmp_path: Path) -> None:
    said: list[str] = []

    done = ship(recipe, progress=False, say=said.append)
    ship(recipe, progress=False, say=said.append)

    serving = registry.fetch(registry.connect(), done.run_id, tmp_path).manifest.serving
    assert serving is not None
    assert serving.reason
    assert len([line for line in said if line.endswith("timing them for about 0.2 s")]) == 1


def test_tuning_can_be_left_out(recipe: Recipe, embedded_tracking: str, tmp_path: Path) -> None:
    done = ship(recipe, tuned=False, progress=False)

    assert registry.fetch(registry.connect(), done.run_id, tmp_path).manifest.serving is None


def test_recipes_of_different_models_are_not_compared() -> None:
    with pytest.raises(RecipeError, match=r"recipes of 2 models \(other, tiny\)"):
        ship([_recipe(), _recipe(model_name="other")])


def test_no_recipe_is_told() -> None:
    with pytest.raises(RecipeError, match="no recipe"):
        ship([])


def test_an_error_names_the_stage_that_it_comes_from() -> None:
    with pytest.raises(BundleError, match=r"^export run 1: broken$"), stage("export run 1"):
        raise BundleError("broken")


@pytest.mark.parametrize(
    "module", ["export", "gate", "graph", "history", "parity", "promotion", "registry", "search", "ship", "tune"]
)
def test_the_modules_import_torch_mlflow_and_onnx_only_when_they_work(module: str) -> None:
    import subprocess
    import sys

    spec = importlib.util.find_spec(f"pipelines.{module}")
    assert spec is not None
    assert spec.origin is not None
    heavy = "{'torch', 'mlflow', 'onnx', 'onnxruntime'} & set(sys.modules)"
    code = f"import sys, pipelines.{module}; sys.exit(repr({heavy}) if {heavy} else 0)"
    root = Path(spec.origin).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
