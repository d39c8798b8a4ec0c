"""The JSON of a prediction, built by hand: on the hot path a general encoder costs more than the rest of the route."""

from __future__ import annotations

import heapq
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.inference.errors import InferenceFailed
from services.inference.model import Model

_FEW: Final = 64
"""Classes that are sorted faster than the best of them are picked."""


def predictions(model: Model, probabilities: NDArray[np.float32], top_k: int) -> bytes:
    """The body of the answer.

    Args:
        probabilities: float32, (n, classes).
        top_k: from 1 to the number of classes.

    Raises:
        InferenceFailed: the model answered something that is not a number.
    """
    labels = model.labels_json
    rows = []
    for row in probabilities.tolist():
        # Not numpy: for a row of a few classes its call overhead is larger than the work. Ties go to the lower index.
        if len(row) <= _FEW:
            best = sorted(range(len(row)), key=row.__getitem__, reverse=True)[:top_k]
        else:
            best = heapq.nlargest(top_k, range(len(row)), key=row.__getitem__)
        # Seven digits carry all that a float32 knows.
        top = [f'{{"label": {labels[i]}, "index": {i}, "probability": {row[i]:.7g}}}' for i in best]
        if not sum(row) < float("inf"):  # true for nan as well, which JSON could not say
            raise InferenceFailed(f"model {model.name!r} version {model.version} gave no number; look at its export.")
        rows.append(f'{top[0][:-1]}, "top": [{", ".join(top)}]}}')
    return f"{model.head_json}{', '.join(rows)}]}}".encode()
