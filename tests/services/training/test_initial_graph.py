from __future__ import annotations

import numpy as np

from services.training.initial_graph import normalization


def test_standard_normalisation_is_the_mean_and_deviation_of_every_channel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 6, 5, 3), dtype=np.uint8)
    mean, std = normalization("standard", images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)))
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)))
    assert normalization("unit", images) == ((0.0,) * 3, (1.0,) * 3)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    assert normalization("standard", np.full((2, 3, 3, 1), 51, np.uint8)) == ((0.2,), (1.0,))
