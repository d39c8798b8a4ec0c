from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from services.training import figures
from services.training.drawing import to_png

ROW = {"train/loss": 0.4, "validation/loss": 0.3, "train/accuracy": 0.8, "validation/accuracy": 0.9, "lr": 1e-3}


def _size(figure: Any) -> tuple[int, int]:
    png = to_png(figure)
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.size


def _texts(figure: Any) -> set[str]:
    return {text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title)}


@pytest.mark.parametrize("epochs", [1, 3, 200])
def test_learning_curves_hold_both_splits_and_the_learning_rate(make_recipe: Any, epochs: int) -> None:
    figure = figures.learning_curves([ROW] * epochs, make_recipe())
    loss, accuracy, rate = figure.axes
    assert [line.get_label() for line in loss.lines[:2]] == ["train", "validation"]
    assert [np.size(line.get_xdata()) for line in (*loss.lines[:2], *accuracy.lines[:2], rate.lines[0])] == [epochs] * 5
    assert _size(figure) == (1430, 462)


def test_the_best_epoch_is_the_first_best_of_what_the_recipe_monitors(make_recipe: Any) -> None:
    history = [{**ROW, "validation/accuracy": a, "validation/loss": b} for a, b in ((0.5, 1), (0.9, 3), (0.9, 0.5))]

    def best(recipe: Any) -> str:
        return str(figures.learning_curves(history, recipe).axes[0].lines[2].get_label())

    assert best(make_recipe()) == "best epoch (2)"
    assert best(make_recipe(fit={"early_stopping": {"monitor": "validation/loss"}})) == "best epoch (3)"


def test_learning_curves_take_what_is_not_finite(make_recipe: Any) -> None:
    _size(
        figures.learning_curves([{**ROW, "validation/loss": float("nan")}, {**ROW, "train/loss": 1e9}], make_recipe())
    )


@pytest.mark.parametrize("classes", [2, 10, 26, 100])
def test_the_confusion_matrix_is_drawn_from_2_to_100_classes(classes: int) -> None:
    matrix = np.diag(np.full(classes, 7))
    width, height = _size(figures.confusion_matrix(matrix, tuple(f"class {index}" for index in range(classes))))
    assert 900 < width < 3000
    assert 450 < height < 1500


def test_a_cell_says_count_and_share_and_an_empty_one_nothing() -> None:
    figure = figures.confusion_matrix(np.array([[2999, 1], [0, 5]]), ("a", "b"))
    assert _texts(figure) - {"Test images", "Share of the true class", ""} == {
        "2,999",
        "1",
        "5",
        "99.9%",
        "<1%",
        "100%",
    }


def test_mistakes_show_the_surest_first_with_truth_and_answer() -> None:
    images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32)
    figure = figures.mistakes(images, np.array([1, 0, 1, 0]), probabilities, ("cat", "dog"))
    titles = [text.get_text() for text in figure.axes[0].texts]
    assert titles == ["true dog\nsaid cat (90%)", "true cat\nsaid dog (70%)", "true cat\nsaid dog (60%)"]
    assert figure.get_suptitle() == "3 mistakes on 4 test images"
    _size(figure)


def test_mistakes_are_limited_and_none_is_said() -> None:
    images, truth = np.zeros((50, 8, 8, 1), dtype=np.uint8), np.zeros(50, dtype=np.int64)
    right, wrong = (np.tile(row, (50, 1)) for row in np.eye(2, dtype=np.float32))
    many = figures.mistakes(images, truth, wrong, ("a", "b"))
    assert len(many.axes[0].images) == 24
    assert "the 24 that the network was surest of" in many.get_suptitle()
    none = figures.mistakes(images, truth, right, ("a", "b"))
    assert none.get_suptitle() == "No mistake on 50 test images"
    _size(none)


def test_class_names_of_any_kind_are_drawn() -> None:
    labels = ("$\\frac$", "a_b^c", "猫", "x" * 200)
    _size(figures.confusion_matrix(np.eye(4, dtype=np.int64), labels))
    wrong = np.roll(np.eye(4, dtype=np.float32), 1, axis=1)
    _size(figures.mistakes(np.zeros((4, 8, 8, 1), dtype=np.uint8), np.arange(4), wrong, labels))


def test_pyplot_is_never_imported(make_recipe: Any) -> None:
    before = "matplotlib.pyplot" in sys.modules
    to_png(figures.learning_curves([ROW], make_recipe()))
    assert ("matplotlib.pyplot" in sys.modules) == before
