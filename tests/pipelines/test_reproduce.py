from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contracts.errors import DataError
from contracts.recipe import Recipe, parse
from pipelines import reproduce
from pipelines.reproduce import Row, missed, table
from services.training import weight_files
from services.training.train_result import TrainResult


def recipe(name: str = "tiny", published: float | None = None, **parts: Any) -> Recipe:
    content: dict[str, Any] = {
        "description": "A tiny net.",
        "published": {"test_accuracy": published},
        "data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
        "model": {"kind": "convnet", "blocks": [{"filters": 4, "padding": "same"}]},
        "fit": {"epochs": 1, "precision": "fp32"},
        **parts,
    }
    return parse(content, name=name)


def row(*accuracies: float, published: float | None) -> Row:
    results = [
        TrainResult(
            run_id="r",
            recipe="tiny",
            model_name="tiny",
            recipe_hash="h",
            test_accuracy=accuracy,
            test_loss=0.1,
            validation_accuracy=accuracy,
            validation_loss=0.1,
            best_epoch=1,
            epochs=epochs,
            images_per_second=1234.5,
            seconds=7.0,
            device="cpu",
            precision="fp32",
            parameters=1000,
            trainable_parameters=900,
        )
        for epochs, accuracy in enumerate(accuracies, start=3)
    ]
    return Row(recipe(published=published), data="digits, 1,000 / 359", results=results)


def test_a_figure_is_reached_when_the_mean_is_within_the_spread_below_it() -> None:
    assert row(0.90, 0.92, 0.94, published=0.93).reached is True
    assert row(0.90, 0.92, 0.94, published=0.95).reached is False
    assert row(0.92, published=0.9201).reached is False  # one seed has no spread to excuse it
    assert row(0.92, published=None).reached is None
    assert missed([row(0.5, published=0.9), row(0.95, published=0.9)]) == ["tiny"]


def test_the_table_shows_mean_spread_seeds_epochs_and_conditions() -> None:
    text = table([row(0.90, 0.92, published=0.91)], machine="a CPU", versions={"torch": "2"}, note="It was busy.")
    assert "Machine: a CPU. torch 2.\nIt was busy.\n" in text
    assert (
        "| `tiny` | 1,000 (900) | digits, 1,000 / 359 | 0.9100 | 0.9100 ± 0.0141 | yes | 2 | 3-4 | 7 | 1,234 |" in text
    )


def test_recipes_are_fitted_once_a_seed_and_the_file_is_written(tmp_path: Path, embedded_tracking: str) -> None:
    output = tmp_path / "REPRODUCTION.md"
    said: list[str] = []
    rows = reproduce.reproduce([recipe()], output=output, seeds=(0, 1), progress=False, say=said.append)
    assert len({result.run_id for result in rows[0].results}) == 2
    assert "| `tiny` |" in output.read_text()
    again = reproduce.reproduce([recipe()], output=output, seeds=(0, 1), progress=False, say=said.append)
    assert all(result.reused for result in again[0].results)


def test_a_long_fit_is_done_with_one_seed(
    tmp_path: Path, embedded_tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce, "LONG_S", 0.0)
    rows = reproduce.reproduce([recipe()], output=tmp_path / "R.md", progress=False, say=lambda _: None)
    assert len(rows[0].results) == 1


def test_data_that_are_not_at_hand_are_a_row_that_says_so(tmp_path: Path) -> None:
    folder = {"dataset": "folder", "path": str(tmp_path / "no"), "image": {"height": 8, "width": 8, "channels": 1}}
    output = tmp_path / "R.md"
    rows = reproduce.reproduce([recipe(data=folder)], output=output, progress=False, say=lambda _: None)
    assert rows[0].missing is not None
    assert "not run" in output.read_text()
    assert str(tmp_path / "no") in output.read_text()


def test_a_recipe_without_a_figure_must_be_above_the_one_it_competes_with(tmp_path: Path) -> None:
    rival = recipe("old", published=0.93, model_name="pets")
    better = row(0.94, published=None)
    better.recipe, better.rival = recipe("new", model_name="pets"), rival
    assert better.reached is True
    assert "| 0.9300 (`old`) | 0.9400 | yes |" in table([better], machine="a CPU", versions={})
    equal = row(0.93, published=None)
    equal.rival = rival
    assert equal.reached is False


def test_a_fit_that_would_take_too_long_is_a_trial_on_a_part(tmp_path: Path, embedded_tracking: str) -> None:
    output = tmp_path / "R.md"
    long = recipe(published=0.9, fit={"epochs": 7, "precision": "fp32"})
    rows = reproduce.reproduce([long], output=output, longest=0.0, progress=False, say=lambda _: None)
    assert rows[0].recipe.data.limit == reproduce.TRIAL_IMAGES
    assert rows[0].results[0].epochs == reproduce.TRIAL_EPOCHS
    assert rows[0].reached is None
    assert len(rows[0].results) == 1
    assert "trial: 0." in output.read_text()
    assert "the whole fit would take about" in output.read_text()


def test_missing_pretrained_weights_are_a_trial_with_random_ones_and_so_is_what_starts_from_it(
    tmp_path: Path, embedded_tracking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(name: str) -> Path:
        raise DataError(f"model.weights 'imagenet' of {name}: not here.")

    monkeypatch.setattr(weight_files, "imagenet", away)  # torch would look for the file on the network
    monkeypatch.setattr(reproduce, "TRIAL_IMAGES", 20)
    monkeypatch.setattr(reproduce, "TRIAL_EPOCHS", 1)
    data = {"dataset": "digits", "image": {"height": 32, "width": 32, "channels": 3}}
    base = {"kind": "backbone", "name": "squeezenet1_1", "head": {"pool": "average"}}
    first = recipe("first", data=data, model={**base, "weights": "imagenet"})
    second = recipe("second", data=data, model={**base, "weights": {"recipe": "first", "include": "all"}})
    output = tmp_path / "R.md"
    rows = reproduce.reproduce([first, second], output=output, progress=False, say=lambda _: None)
    assert [len(found.results) for found in rows] == [1, 1]
    assert "RANDOM weights" in output.read_text()
    assert "the run of `first` that it starts from was a trial" in output.read_text()


def test_the_confusion_matrix_stands_below_where_a_figure_is_published(tmp_path: Path, embedded_tracking: str) -> None:
    output = tmp_path / "R.md"
    rows = reproduce.reproduce([recipe(published=0.1)], output=output, seeds=(0,), progress=False, say=lambda _: None)
    confusion = rows[0].confusion
    assert confusion is not None
    assert sum(map(sum, confusion.values())) == int(rows[0].data.rpartition(" ")[2])
    right = sum(column[index] for index, column in enumerate(confusion.values()))
    assert right / sum(map(sum, confusion.values())) == pytest.approx(rows[0].mean)
    lines = output.read_text().splitlines()
    assert f"| 0 | {' | '.join(str(column[0]) for column in confusion.values())} |" in lines
