"""Fingerprints: of the content, whatever its order."""

from __future__ import annotations

import numpy as np
import pytest

from services.training.data.dataset import Split, digests, fingerprint


def _split(count: int = 6) -> Split:
    images = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)
    return Split(images=images, labels=np.arange(count, dtype=np.int64) % 2)


def test_the_order_of_the_images_does_not_matter() -> None:
    split = _split()
    assert split.take(np.array([3, 1, 5, 0, 4, 2])).fingerprint() == split.fingerprint()


@pytest.mark.parametrize("place", [(0, 0, 0, 0), (5, 3, 3, 0)])
def test_one_changed_pixel_matters(place: tuple[int, ...]) -> None:
    split = _split()
    before = split.fingerprint()
    split.images[place] ^= 1
    assert split.fingerprint() != before


def test_a_changed_label_matters() -> None:
    split = _split()
    before = split.fingerprint()
    split.labels[0] = 1
    assert split.fingerprint() != before


def test_two_images_that_swap_labels_matter() -> None:
    split = _split()
    swapped = Split(images=split.images, labels=split.labels[[1, 0, 2, 3, 4, 5]])
    assert swapped.fingerprint() != split.fingerprint()


def test_a_missing_image_matters() -> None:
    split = _split()
    assert split.take(np.arange(5)).fingerprint() != split.fingerprint()


def test_the_shape_of_an_image_matters() -> None:
    white = np.full((1, 2, 8, 1), 255, dtype=np.uint8)
    assert digests(white) != digests(white.reshape(1, 4, 4, 1))


def test_images_that_are_not_contiguous_have_the_same_digests() -> None:
    images = _split().images
    assert digests(images[::2]) == digests(images)[::2]
    assert digests(np.asfortranarray(images)) == digests(images)


def test_class_names_and_their_order_matter() -> None:
    prints = {fingerprint(names, ["x"]) for names in (("a", "b"), ("b", "a"), ("ab", ""), ("a", "b", "x"))}
    assert len(prints) == 4
