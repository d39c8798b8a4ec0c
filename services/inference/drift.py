"""Drift: how far the answers of late are from those that the model gave to its test images.

The measure is the population stability index (PSI) of two counts over the same cells, of the predicted classes and of
the confidence (the largest probability) in ten bins that the test images fill evenly:

    PSI = sum over the cells of (a - e) * ln(a / e)

with e the cell's share of the test images and a that of the window; it is the symmetric Kullback-Leibler divergence
(Jeffreys, 1946), known under this name from credit scoring (Siddiqi, Credit Risk Scorecards, 2006: below 0.1 no change,
above 0.25 a large one). An empty cell would make it infinite, so every cell counts half an image more. Of images that
have not drifted it is about (cells - 1) * (1/window + 1/test) (Yurdakul, Statistical Properties of Population Stability
Index, 2018), so nothing is told of a window with less than 50 images a cell: that keeps it under about 0.02.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contracts.bundle import Reference

_PER_CELL: Final = 50
_FOLD: Final = 128
"""Images that gather before they are counted, all at once: one by one, numpy's calls would cost more than the work."""


def psi(expected: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """The population stability index of two counts over the same cells; 0 where their shares are equal."""
    e, a = expected + 0.5, found + 0.5
    e, a = e / e.sum(), a / a.sum()
    return float(np.sum((a - e) * np.log(a / e)))


class Drift:
    """The last answers of one loaded model. Belongs to the event loop.

    Args:
        reference: the bundle's; how the test images were answered.
        window: images that are looked back on; more where the cells need it.
        publish: is told of the PSI of classes and of confidence and of the window's images, after every 128th image.
            Before the window holds enough it is told of the images alone.
    """

    def __init__(
        self, reference: Reference, *, window: int, publish: Callable[[float | None, float | None, int], None]
    ) -> None:
        self._classes = np.asarray(reference.classes, dtype=np.int64)
        self._bins = np.asarray(reference.confidence, dtype=np.int64)
        self._edges = np.asarray(reference.edges, dtype=np.float32)
        self._enough = _PER_CELL * max(len(self._classes), len(self._bins))
        self._publish = publish
        self._pending: list[NDArray[np.float32]] = []
        self._pending_rows = 0
        # Rings of what each image of the window was counted as; -1 where there has been none yet.
        size = max(window, self._enough)
        self._ring = np.full((2, size), -1, dtype=np.int32)
        self._at = 0
        self._seen_classes = np.zeros_like(self._classes)
        self._seen_bins = np.zeros_like(self._bins)
        publish(None, None, 0)

    def observe(self, probabilities: NDArray[np.float32]) -> None:
        """Count answers, float32 (n, classes)."""
        self._pending.append(probabilities)
        self._pending_rows += len(probabilities)
        if self._pending_rows >= _FOLD:
            self._fold()

    def _fold(self) -> None:
        size = self._ring.shape[1]
        answers = np.concatenate(self._pending)[-size:]
        self._pending, self._pending_rows = [], 0
        answers = answers[np.isfinite(answers).all(axis=1)]
        if not len(answers):
            return
        new = np.stack((answers.argmax(axis=1), np.searchsorted(self._edges, answers.max(axis=1), side="right")))
        places = (self._at + np.arange(new.shape[1])) % size
        old = self._ring[:, places]
        old = old[:, old[0] >= 0]
        self._ring[:, places] = new
        self._at = int(places[-1] + 1) % size
        for seen, added, left in zip((self._seen_classes, self._seen_bins), new, old, strict=True):
            np.add(seen, np.bincount(added, minlength=len(seen)), out=seen)
            np.subtract(seen, np.bincount(left, minlength=len(seen)), out=seen)
        images = int(self._seen_classes.sum())
        if images < self._enough:
            self._publish(None, None, images)
        else:
            self._publish(psi(self._classes, self._seen_classes), psi(self._bins, self._seen_bins), images)
