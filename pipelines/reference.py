"""How a model answers its test images: what serving compares its own answers with, to tell drift."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from contracts.bundle import Reference

BINS: Final = 10


def reference(probabilities: NDArray[np.float32]) -> Reference:
    """The distribution of the predicted classes and of the confidence, its largest probability, in up to ten bins.

    The bins' edges are deciles, so that each holds a tenth of the images; where many images have one and the same
    confidence (1.0, mostly), the bins between are left out, and none is empty.

    Args:
        probabilities: float32, (n, classes), as the graph that will be served gave them to the test images.
    """
    confidence = probabilities.max(axis=1)
    # Inverted: an edge is then one of the values, and falls into the bin that begins with it.
    deciles = np.quantile(confidence, np.arange(1, BINS) / BINS, method="inverted_cdf")
    edges = np.unique(deciles[deciles > confidence.min()])
    bins = np.searchsorted(edges, confidence, side="right")
    classes = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])
    return Reference(
        classes=tuple(classes.tolist()),
        edges=tuple(edges.tolist()),
        confidence=tuple(np.bincount(bins, minlength=len(edges) + 1).tolist()),
    )
