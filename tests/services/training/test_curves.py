from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from services.training import curves, scores
from services.training.drawing import to_png


def answers(classes: int, n: int = 400, skill: float = 2.0) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    random = np.random.default_rng(0)
    truth = random.integers(0, classes, n)
    logits = random.normal(size=(n, classes))
    logits[np.arange(n), truth] += skill
    powers = np.exp(logits)
    return truth, (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {index}" for index in range(classes))


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize(("classes", "drawn", "named"), [(2, 1, 1), (3, 3, 3), (10, 10, 10), (30, 30, 10)])
def test_every_class_has_its_curves_and_at_most_ten_a_name(classes: int, drawn: int, named: int) -> None:
    figure = curves.precision_recall_roc(*answers(classes, skill=0.5), names(classes))
    for axes, diagonal in zip(figure.axes, (0, 1), strict=True):
        assert len(axes.lines) == drawn + diagonal
        assert len(legend(axes)) == named
    with Image.open(io.BytesIO(to_png(figure))) as image:
        assert image.size == (1430, 550)


def test_of_more_than_ten_classes_the_weakest_are_named() -> None:
    truth, probabilities = answers(12, skill=1.0)
    probabilities[:, 7] = np.random.default_rng(1).random(len(truth)) / 12
    figure = curves.precision_recall_roc(truth, probabilities, names(12))
    assert all(legend(axes)[0].startswith("class 7 ") for axes in figure.axes)


def test_the_areas_are_those_of_the_metrics() -> None:
    truth, probabilities = answers(2, skill=0.5)
    figure = curves.precision_recall_roc(truth, probabilities, ("cat", "dog"))
    found = scores.score(truth, probabilities)
    assert legend(figure.axes[0]) == [f"dog  {found['test/average_precision']:.4f}"]
    assert legend(figure.axes[1]) == [f"dog  {found['test/roc_auc']:.4f}"]


def test_curves_that_keep_to_their_corner_are_shown_there_and_the_title_says_so() -> None:
    near = curves.precision_recall_roc(*answers(3, skill=9.0), names(3)).axes
    assert [axes.get_title(loc="left") for axes in near] == [
        "Precision and recall (its corner, 5% a side)",
        "ROC (its corner, 5% a side)",
    ]
    far = curves.precision_recall_roc(*answers(3, skill=0.5), names(3)).axes
    assert [axes.get_ylim()[0] for axes in far] == [0, 0]


def test_one_class_alone_has_no_curve_and_the_figure_is_drawn_all_the_same() -> None:
    probabilities = np.full((5, 2), 0.5, dtype=np.float32)
    figure = curves.precision_recall_roc(np.zeros(5, dtype=np.int64), probabilities, ("a", "b"))
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["one class only: no curve"] * 2
    to_png(figure)


def test_the_reliability_diagram_tells_both_errors_and_the_images_of_each_bin() -> None:
    truth, served = answers(3)
    sharper = served**4 / (served**4).sum(axis=1, keepdims=True)
    figure = curves.reliability(truth, served, sharper, 4.0)
    axes: list[Any] = figure.axes
    before, after, counts_before, _ = axes
    errors = [scores.calibration_error(truth, each) for each in (sharper, served)]
    assert before.get_title(loc="left") == f"Before calibration (temperature 1): ECE {errors[0]:.4f}"
    assert after.get_title(loc="left") == f"As served (temperature 4): ECE {errors[1]:.4f}"
    heights = [bar.get_height() for bar in counts_before.patches]
    assert sum(heights) == len(truth)
    to_png(figure)
