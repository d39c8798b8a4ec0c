from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from contracts.recipe import Augmentation
from services.training import samples
from services.training.drawing import to_png


def data(
    n: int = 60, classes: int = 3, channels: int = 3
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, channels), dtype=np.uint8)
    return images, np.arange(n, dtype=np.int64) * classes // n, tuple("abcdefghij"[:classes])


def test_samples_come_in_turn_from_every_class() -> None:
    figure = samples.samples(*data())
    titles = [text.get_text() for text in figure.axes[0].texts]
    assert titles == ["a", "b", "c"] * 10 + ["a", "b"]
    assert figure.get_suptitle() == "32 of 60 training images"
    to_png(figure)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_few_images_are_enough(channels: int) -> None:
    images, truth, labels = data(3, channels=channels)
    to_png(samples.samples(images, truth, labels))
    to_png(samples.augmented(images, truth, labels, Augmentation(flip_vertical=True)))


def test_augmented_rows_begin_with_the_image_and_go_on_with_what_is_made_of_it() -> None:
    images, truth, labels = data()
    figure = samples.augmented(images, truth, labels, Augmentation(rotation=40))
    rows = np.array([image.get_array() for image in figure.axes[0].images]).reshape(5, 8, 8, 8, 3)
    originals = [0, 20, 40, 1, 21]
    np.testing.assert_array_equal(rows[:, 0], images[originals])
    assert all(not np.array_equal(row[0], changed) for row in rows for changed in row[1:])
    assert not np.array_equal(rows[0, 1], rows[0, 2])
    to_png(figure)


@pytest.mark.parametrize("config", [Augmentation(mixup=1.0), Augmentation(cutmix=1.0)])
def test_an_image_is_shown_mixed_with_another_one(config: Augmentation) -> None:
    _, truth, labels = data(6)
    levels = (truth * 100).astype(np.uint8)[:, None, None, None] + np.zeros((6, 8, 8, 3), dtype=np.uint8)
    figure = samples.augmented(levels, truth, labels, config)
    rows = np.array([image.get_array() for image in figure.axes[0].images]).reshape(5, 8, -1)
    assert all((row[1:] != row[0, 0]).any() for row in rows)


def test_without_augmentation_the_figure_says_so() -> None:
    figure = samples.augmented(*data(), Augmentation())
    assert figure.get_suptitle() == "No augmentation: the network sees the images as they are"
    assert len(figure.axes[0].images) == 5


def test_the_callers_random_numbers_stay_as_they_were() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    samples.augmented(*data(), Augmentation(rotation=40, cutout=2, crop_padding=1, flip_horizontal=True))
    assert torch.equal(torch.get_rng_state(), state)
