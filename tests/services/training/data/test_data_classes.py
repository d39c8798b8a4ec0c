"""Class subsets in the order given."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.errors import RecipeError
from services.training.data.classes import indices_of, select
from services.training.data.dataset import Split

KNOWN = ("cat", "deer", "dog", "horse")


def test_labels_are_numbered_in_the_order_given_and_images_keep_theirs() -> None:
    labels = np.array([0, 1, 2, 3, 1], dtype=np.int64)
    split = Split(images=np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1), labels=labels)
    chosen = select(split, indices_of(("horse", "deer"), KNOWN, name="animals"))
    assert chosen.labels.tolist() == [1, 0, 1]
    assert chosen.labels.dtype == np.int64
    assert chosen.images.ravel().tolist() == [1, 3, 4]


def test_a_class_that_is_not_known_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"'dear' is not a class of animals; did you mean 'deer'\?"):
        indices_of(("dear", "dog"), KNOWN, name="animals")


def test_a_class_like_no_other_is_refused_with_all_of_them() -> None:
    with pytest.raises(RecipeError, match="use some of cat, deer, dog, horse"):
        indices_of(("zzzzzz", "dog"), KNOWN, name="animals")
