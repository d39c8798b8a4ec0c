from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from contracts.errors import RegistryError
from contracts.recipe import Recipe
from services.training import tracking
from services.training.drawing import pictures, to_pixels
from services.training.mlflow_client import connect
from services.training.run import Run


def test_an_artifact_outside_the_run_is_refused_at_once(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        for path in ("../outside.txt", "/etc/x", "", "a/../../b", ".."):
            with pytest.raises(RegistryError, match=r"to write .* is refused"):
                run.file(path, "x")


def test_an_image_series_whose_name_mlflow_does_not_take_is_refused_at_once(
    embedded_tracking: str, tiny_recipe: Recipe
) -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with tracking.open_run(tiny_recipe, tags={}) as run, pytest.raises(RegistryError, match="image series 'a:b'"):
        run.image("a:b", 1, image)


def test_an_image_of_a_step_is_there_once_however_often_it_is_logged(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe
) -> None:
    first, second = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 200, np.uint8)
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.image("layer/1", 3, first)
        time.sleep(0.01)
        run.image("layer/1", 3, second)
        run.image("layer/1", 4, first)
    names = sorted(path.name for path in (home / "artifacts").rglob("images/*.png"))
    assert len(names) == 2
    assert names[0].startswith("layer~1+step+3+timestamp+")
    from PIL import Image

    (path,) = (home / "artifacts").rglob("images/layer~1+step+3+*.png")
    assert np.asarray(Image.open(path)).tolist() == second.tolist()


def test_a_figure_lets_go_of_its_memory_once_it_is_written(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe
) -> None:
    figure = pictures([[(np.zeros((8, 8, 1), np.uint8), "a")]], "heading")
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.figure("figures/a.png", figure, key="a")
    (path,) = (home / "artifacts").rglob("figures/a.png")
    assert to_pixels(path.read_bytes()).min() < 50
    assert not figure.axes
    assert not hasattr(figure.canvas, "renderer")  # with its pixels


def test_a_run_that_mlflow_has_all_of_leaves_no_journal(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe
) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        assert (home / "journal" / run.run_id).is_dir()
        run.file("a.txt", "x")
    assert run.tracked
    assert list((home / "journal").iterdir()) == []


def test_what_mlflow_refuses_ends_the_run_with_one_sentence_and_is_kept(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe
) -> None:
    with (
        pytest.raises(RegistryError, match=r"MLflow refuses 2 of the entries .*stride sync --discard"),
        tracking.open_run(tiny_recipe, tags={}) as run,
    ):
        _log_two(run)
    assert not run.tracked
    found = tracking.get_run(run.run_id)
    assert found.data.metrics["c"] == 2.0
    assert found.info.status == "RUNNING"
    assert (home / "journal" / run.run_id / "journal.jsonl").exists()


def _log_two(run: Run) -> None:
    run.metrics({"a(b)": 1.0})
    run.metrics({"c": 2.0})


def test_a_metric_appears_in_mlflow_while_the_run_goes_on(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.epoch(1, {"train/loss": 0.5})
        client: MlflowClient = connect(embedded_tracking)
        deadline = time.monotonic() + 60
        while not client.get_metric_history(run.run_id, "train/loss"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
