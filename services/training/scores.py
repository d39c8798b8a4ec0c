"""What a network's probabilities on the test split are worth, computed with scikit-learn."""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray

BINS: Final = 15
"""Of the calibration error."""
CLIP: Final = 1e-7
"""The smallest probability that the cross-entropy sees: one confident mistake costs at most 16.1."""


def score(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> dict[str, float]:
    """The test metrics; the same keys whatever the classes.

    Precision, recall and F1 are means over the classes, each counting the same. `test/roc_auc` is that of the second
    class where there are two, and the mean over the classes of one against the rest where there are more; it is left
    out where the truth holds one class only, since nothing defines it there. `test/calibration_error` is the expected
    calibration error of the predicted class: 15 bins of equal width on its probability, weighted by their images.

    Args:
        truth: (n,), class indices.
        probabilities: (n, classes), rows that sum to one.
    """
    from sklearn.metrics import accuracy_score, log_loss, precision_recall_fscore_support

    classes = np.arange(probabilities.shape[1])
    predicted = probabilities.argmax(axis=1)
    clipped = probabilities.astype(np.float64).clip(CLIP, 1.0)
    clipped /= clipped.sum(axis=1, keepdims=True)
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, predicted, labels=classes, average="macro", zero_division=0
    )
    scores = {
        "test/accuracy": accuracy_score(truth, predicted),
        "test/loss": log_loss(truth, clipped, labels=classes),
        "test/macro_precision": precision,
        "test/macro_recall": recall,
        "test/macro_f1": f1,
        "test/calibration_error": calibration_error(truth, probabilities),
    }
    if len(np.unique(truth)) > 1:
        scores["test/roc_auc"] = _roc_auc(truth, probabilities)
    return {key: float(value) for key, value in scores.items()}


def per_class(
    truth: NDArray[np.int64], probabilities: NDArray[np.float32], labels: tuple[str, ...]
) -> dict[str, list[str] | list[float] | list[int]]:
    """Columns class, precision, recall, f1 and support (the number of test images), one row a class."""
    from sklearn.metrics import precision_recall_fscore_support

    values = precision_recall_fscore_support(
        truth, probabilities.argmax(axis=1), labels=np.arange(len(labels)), zero_division=0
    )
    precision, recall, f1, support = (column.tolist() for column in values)
    return {"class": list(labels), "precision": precision, "recall": recall, "f1": f1, "support": support}


def confusion(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> NDArray[np.int64]:
    """(classes, classes): the images of each true class (row) by predicted class (column)."""
    from sklearn.metrics import confusion_matrix

    matrix: NDArray[np.int64] = confusion_matrix(
        truth, probabilities.argmax(axis=1), labels=np.arange(probabilities.shape[1])
    )
    return matrix


def calibration_error(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> float:
    """The mean distance between confidence and accuracy over `BINS` bins of equal width, weighted by their images."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(bins, right - confidence, minlength=BINS)  # images x (accuracy - confidence), of each bin
    return float(np.abs(gap).sum() / len(truth))


def _roc_auc(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> float:
    from sklearn.metrics import roc_auc_score

    present = [1] if probabilities.shape[1] == 2 else np.unique(truth).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an undefined area is a warning and a NaN; it is a mistake of ours here
        areas = [roc_auc_score(truth == index, probabilities[:, index]) for index in present]
    return float(np.mean(areas))
