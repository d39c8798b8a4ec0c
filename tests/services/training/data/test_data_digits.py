"""The embedded digits are scikit-learn's, scaled."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from services.training.data.digits import read


def test_they_are_the_ones_that_scikit_learn_loads() -> None:
    source, official = read(), load_digits()
    np.testing.assert_array_equal(source.train.labels, official.target)
    assert np.abs(source.train.images[..., 0] - official.images * (255 / 16)).max() <= 0.5
    assert source.train.images.dtype == np.uint8
    assert source.train.images.shape == (1797, 8, 8, 1)
    assert source.train.images.max() == 255


def test_they_bring_no_split_of_their_own() -> None:
    assert read().test is read().validation is None
