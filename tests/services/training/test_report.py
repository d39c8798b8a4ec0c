from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.errors import FitError
from contracts.recipe import Recipe
from services.training import tracking
from services.training.data.dataset import Dataset, Split
from services.training.report import log_report

HISTORY = [
    {"train/loss": 1 / e, "validation/loss": 1.1 / e, "train/accuracy": 0.5, "validation/accuracy": 0.6, "lr": 1e-3}
    for e in range(1, 6)
]
FILES = {
    "figures/confusion_matrix.png",
    "figures/learning_curves.png",
    "figures/augmented.png",
    "figures/mistakes.png",
    "figures/precision_recall_roc.png",
    "figures/reliability.png",
    "figures/samples.png",
    "model_card.md",
    "tables/confusion_matrix.json",
    "tables/per_class.json",
}


def _report(recipe: Recipe, dataset: Dataset, probabilities: Any) -> tuple[str, dict[str, float]]:
    with tracking.open_run(recipe, tags={}) as run:
        results = log_report(
            run,
            recipe=recipe,
            dataset=dataset,
            history=HISTORY,
            probabilities=probabilities,
            facts={"device": "cpu"},
        )
    return run.run_id, results


def _files(home: Path, run_id: str) -> set[str]:
    root = home / "artifacts" / "tiny" / run_id / "artifacts"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_every_run_has_the_same_metrics_and_files(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe, make_dataset: Any, answers: Any
) -> None:
    keys = []
    for classes, wrong in ((2, 0), (3, 1), (30, 5)):
        dataset = make_dataset(classes=classes)
        run_id, results = _report(tiny_recipe, dataset, answers(dataset, wrong=wrong))
        logged = tracking.get_run(run_id).data
        assert {key: logged.metrics[key] for key in results} == results
        files = _files(home, run_id)
        assert {name for name in files if not name.startswith("images/")} == FILES
        series = {name.partition("/")[2].partition("+step+")[0] for name in files - FILES}
        assert series == {"learning-curves", "confusion-matrix", "reliability"}
        assert logged.tags["mlflow.note.content"].startswith("# tiny")
        keys.append(set(results))
    assert keys[0] == keys[1] == keys[2]


def test_what_the_temperature_did_stands_beside_what_is_served(
    embedded_tracking: str, tiny_recipe: Recipe, tiny_dataset: Dataset, answers: Any
) -> None:
    served = answers(tiny_dataset, wrong=2)
    sharper = served**3 / (served**3).sum(axis=1, keepdims=True)
    with tracking.open_run(tiny_recipe, tags={}) as run:
        results = log_report(
            run,
            recipe=tiny_recipe,
            dataset=tiny_dataset,
            history=HISTORY,
            probabilities=served,
            facts={},
            uncalibrated=sharper,
            temperature=3.0,
        )
    assert results["test/calibration_error"] < results["test/calibration_error_uncalibrated"]
    assert results["test/loss"] < results["test/loss_uncalibrated"]


def test_tables_hold_the_classes_in_their_order(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe, tiny_dataset: Dataset, answers: Any
) -> None:
    run_id, _ = _report(tiny_recipe, tiny_dataset, answers(tiny_dataset))
    tables = home / "artifacts" / "tiny" / run_id / "artifacts" / "tables"
    classes = json.loads((tables / "per_class.json").read_text())
    assert classes["columns"] == ["class", "precision", "recall", "f1", "support"]
    assert [row[0] for row in classes["data"]] == ["class 0", "class 1", "class 2"]
    matrix = json.loads((tables / "confusion_matrix.json").read_text())
    assert matrix["columns"] == ["true class", "predicted class 0", "predicted class 1", "predicted class 2"]
    assert matrix["data"][0] == ["class 0", 3, 1, 0]


@pytest.mark.parametrize(("shape", "value", "words"), [((12, 2), 0.5, "shape"), ((12, 3), np.nan, "not finite")])
def test_answers_that_cannot_be_scored_are_refused(
    embedded_tracking: str,
    tiny_recipe: Recipe,
    tiny_dataset: Dataset,
    shape: tuple[int, int],
    value: float,
    words: str,
) -> None:
    with pytest.raises(FitError, match=words):
        _report(tiny_recipe, tiny_dataset, np.full(shape, value, dtype=np.float32))


def test_the_report_on_ten_thousand_images_takes_less_than_five_seconds(
    embedded_tracking: str, tiny_recipe: Recipe, make_dataset: Any, answers: Any
) -> None:
    small = make_dataset(classes=10)
    test = Split(images=np.repeat(small.test.images, 250, axis=0), labels=np.repeat(small.test.labels, 250))
    dataset = Dataset(**{name: getattr(small, name) for name in small.__slots__ if name != "test"}, test=test)
    with tracking.open_run(tiny_recipe, tags={}) as run:
        start = time.process_time()  # of this process: other tests may share the cores
        log_report(
            run,
            recipe=tiny_recipe,
            dataset=dataset,
            history=HISTORY,
            probabilities=answers(dataset, wrong=100),
            facts={},
        )
        assert time.process_time() - start < 5
