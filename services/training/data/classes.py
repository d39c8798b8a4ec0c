"""A choice of classes, in the order given."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from contracts.errors import RecipeError
from services.training.data.dataset import Split


def indices_of(wanted: Sequence[str], known: Sequence[str], *, name: str) -> list[int]:
    """The index in `known` of each class that is wanted.

    Raises:
        RecipeError: a class is not known; says the nearest one that is.
    """
    for label in wanted:
        if label not in known:
            near = difflib.get_close_matches(label, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"use some of {', '.join(known)}."
            raise RecipeError(f"data.classes: {label!r} is not a class of {name}; {hint}")
    return [known.index(label) for label in wanted]


def select(split: Split, indices: Sequence[int]) -> Split:
    """Only the classes at `indices`, whose labels become 0, 1, … in that order; the order of the images is kept."""
    new_label = np.full(max(int(split.labels.max(initial=0)), *indices) + 1, -1, dtype=np.int64)
    new_label[list(indices)] = np.arange(len(indices))
    labels = new_label[split.labels]
    keep = np.flatnonzero(labels >= 0)
    return Split(images=split.images[keep], labels=labels[keep])
