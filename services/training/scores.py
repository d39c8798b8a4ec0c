"""What a network's probabilities on the test split are worth, computed with scikit-learn."""

from __future__ import annotations

import warnings
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

BINS: Final = 15
"""Of the calibration error."""
CLIP: Final = 1e-7
"""The smallest probability that the cross-entropy sees: one confident mistake costs at most 16.1."""


class Reliability(NamedTuple):
    """The images by the probability of their predicted class, in `BINS` bins of equal width from 0 to 1."""

    images: NDArray[np.int64]
    accuracy: NDArray[np.float64]
    """Their share of right answers; 0 in an empty bin."""
    confidence: NDArray[np.float64]
    """Their mean probability; 0 in an empty bin."""


def score(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> dict[str, float]:
    """The test metrics; the same keys whatever the classes.

    Precision, recall and F1 are means over the classes, each counting the same. `test/roc_auc` is that of the second
    class where there are two, and the mean over the classes of one against the rest where there are more; it is left
    out where the truth holds one class only, since nothing defines it there; so is `test/average_precision`, the same
    for the area under the precision-recall curve. `test/calibration_error` is the expected
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
        scores["test/roc_auc"], scores["test/average_precision"] = _areas(truth, probabilities)
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
    bins = reliability(truth, probabilities)
    return float((bins.images * np.abs(bins.accuracy - bins.confidence)).sum() / len(truth))


def reliability(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> Reliability:
    """What the reliability diagram shows and the calibration error sums up."""
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    images = np.bincount(bins, minlength=BINS)
    share = 1 / np.maximum(images, 1)
    return Reliability(
        images=images,
        accuracy=np.bincount(bins, right, minlength=BINS) * share,
        confidence=np.bincount(bins, confidence, minlength=BINS) * share,
    )


def _areas(truth: NDArray[np.int64], probabilities: NDArray[np.float32]) -> tuple[float, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score

    present = [1] if probabilities.shape[1] == 2 else np.unique(truth).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an undefined area is a warning and a NaN; it is a mistake of ours here
        areas = [
            area(truth == index, probabilities[:, index])
            for area in (roc_auc_score, average_precision_score)
            for index in present
        ]
    return float(np.mean(areas[: len(present)])), float(np.mean(areas[len(present) :]))
