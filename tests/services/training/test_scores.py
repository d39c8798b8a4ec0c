from __future__ import annotations

import math

import numpy as np
import pytest

from services.training.scores import calibration_error, confusion, per_class, score

KEYS = {
    "test/accuracy",
    "test/loss",
    "test/macro_precision",
    "test/macro_recall",
    "test/macro_f1",
    "test/roc_auc",
    "test/average_precision",
    "test/calibration_error",
}


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_the_keys_do_not_depend_on_the_classes(classes: int) -> None:
    random = np.random.default_rng(0)
    truth = np.tile(np.arange(classes), 3)
    probabilities = random.dirichlet(np.ones(classes), len(truth)).astype(np.float32)
    assert set(score(truth, probabilities)) == KEYS


def test_values_are_those_worked_out_by_hand() -> None:
    truth = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32)
    scores = score(truth, probabilities)
    assert scores["test/accuracy"] == 0.75
    assert scores["test/loss"] == pytest.approx(-sum(map(math.log, (0.9, 0.4, 0.8, 0.7))) / 4, rel=1e-6)
    assert scores["test/macro_recall"] == pytest.approx((0.5 + 1.0) / 2)
    assert scores["test/macro_precision"] == pytest.approx((1.0 + 2 / 3) / 2)
    assert scores["test/macro_f1"] == pytest.approx((2 / 3 + 0.8) / 2)
    assert scores["test/roc_auc"] == 1.0


def test_a_certain_mistake_costs_a_bounded_loss() -> None:
    scores = score(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]], dtype=np.float32))
    assert scores["test/loss"] == pytest.approx(-math.log(1e-7) / 2, rel=1e-3)


def test_calibration_is_perfect_where_confidence_is_accuracy() -> None:
    truth = np.array([0, 0, 0, 1] * 25)
    honest = np.tile(np.array([[0.75, 0.25]], dtype=np.float32), (100, 1))
    certain = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (100, 1))
    assert calibration_error(truth, honest) == pytest.approx(0)
    assert calibration_error(truth, certain) == pytest.approx(0.25)


def test_a_class_that_the_test_split_lacks_is_scored_without_a_warning() -> None:
    scores = score(np.array([0, 1]), np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], dtype=np.float32))
    assert scores["test/accuracy"] == 1.0
    assert scores["test/roc_auc"] == 1.0


def test_the_area_is_left_out_where_one_class_only_is_there() -> None:
    assert "test/roc_auc" not in score(np.array([1, 1]), np.array([[0.2, 0.8], [0.7, 0.3]], dtype=np.float32))


def test_the_table_has_a_row_for_every_class() -> None:
    probabilities = np.eye(3, dtype=np.float32)[[0, 0, 2]]
    table = per_class(np.array([0, 1, 2]), probabilities, ("a", "b", "c"))
    assert table["class"] == ["a", "b", "c"]
    assert table["recall"] == [1.0, 0.0, 1.0]
    assert table["precision"] == [0.5, 0.0, 1.0]
    assert table["support"] == [1, 1, 1]


def test_rows_of_the_confusion_matrix_are_the_truth() -> None:
    probabilities = np.eye(3, dtype=np.float32)[[0, 0, 2]]
    assert confusion(np.array([0, 1, 2]), probabilities).tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
