from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from contracts.recipe import Augmentation
from services.training.augment import affine, augment, draw_affine


def batch(n: int = 64, height: int = 12, width: int = 12, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nothing_is_changed_without_augmentation() -> None:
    assert torch.equal(augment(batch(), Augmentation(), seeded()), batch())
    assert not Augmentation(fill="zeros").any


def test_about_half_of_the_images_are_flipped_and_whole() -> None:
    images = batch(400)
    changed = augment(images, Augmentation(flip_horizontal=True), seeded())
    same = (changed == images).flatten(1).all(1)
    flipped = (changed == images.flip(2)).flatten(1).all(1)
    assert bool((same | flipped).all())
    assert 150 < int(flipped.sum()) < 250


def test_a_crop_is_the_image_moved_by_whole_pixels() -> None:
    images = batch(50)
    changed = augment(images, Augmentation(crop_padding=2, fill="zeros"), seeded())
    padded = np.pad(images.numpy(), ((0, 0), (2, 2), (2, 2), (0, 0)))
    offsets = set()
    for before, after in zip(padded, changed.numpy(), strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if (before[y : y + 12, x : x + 12] == after).all()]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 10  # drawn for each image, not for the batch


@pytest.mark.parametrize(("fill", "mode"), [("nearest", "edge"), ("reflect", "reflect")])
def test_a_crop_fills_as_numpy_pads(fill: str, mode: str) -> None:
    images = batch(20)
    changed = augment(images, Augmentation.model_validate({"crop_padding": 3, "fill": fill}), seeded())
    padded = np.pad(images.numpy(), ((0, 0), (3, 3), (3, 3), (0, 0)), mode=mode)  # type: ignore[call-overload]
    for before, after in zip(padded, changed.numpy(), strict=True):
        assert any((before[y : y + 12, x : x + 12] == after).all() for y in range(7) for x in range(7))


def test_a_cutout_sets_one_square_to_zero() -> None:
    images = torch.full((200, 16, 16, 1), 9, dtype=torch.uint8)
    changed = augment(images, Augmentation(cutout=4), seeded())
    removed = (changed == 0).flatten(1).sum(1)
    assert int(removed.max()) == 16
    assert int(removed.min()) >= 4  # a quarter of it, where its middle is in a corner
    assert changed.dtype == torch.uint8


@pytest.mark.parametrize(("height", "width"), [(15, 15), (11, 21)])
def test_a_rotation_agrees_with_scipy(height: int, width: int) -> None:
    angle = math.radians(30)
    images = batch(3, height, width, 2)
    cosine, sine = math.cos(angle), math.sin(angle)
    maps = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]).expand(3, 2, 3)
    ours = affine(images, maps, "nearest").numpy()
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    matrix = np.array([[cosine, sine], [-sine, cosine]])  # scipy's axes are (row, column)
    for before, after in zip(images.numpy(), ours, strict=True):
        for channel in range(2):
            plane = before[..., channel].astype(float)
            theirs = ndimage.affine_transform(  # type: ignore[attr-defined]
                plane, matrix, offset=middle - matrix @ middle, order=1, mode="nearest"
            )
            np.testing.assert_allclose(after[..., channel], theirs, atol=0.02)


def test_drawn_maps_stay_within_what_the_recipe_allows() -> None:
    config = Augmentation(shift=0.25)
    maps = draw_affine(2000, config, seeded())
    torch.testing.assert_close(maps[:, :, :2], torch.eye(2).expand(2000, 2, 2))
    assert 0.49 < float(maps[:, :, 2].abs().max()) <= 0.5  # a side is two units long
    zoomed = draw_affine(2000, Augmentation(zoom=0.2), seeded())
    assert 0.8 <= float(zoomed[:, 0, 0].min()) < 0.81
    assert 1.19 < float(zoomed[:, 1, 1].max()) <= 1.2
    turned = draw_affine(2000, Augmentation(rotation=40), seeded())
    angles = torch.rad2deg(torch.atan2(turned[:, 1, 0], turned[:, 0, 0]))
    assert 39 < float(angles.abs().max()) <= 40


def test_the_same_generator_gives_the_same_images() -> None:
    config = Augmentation(rotation=40, shift=0.2, zoom=0.2, flip_horizontal=True, crop_padding=2, cutout=3)
    assert torch.equal(augment(batch(), config, seeded(5)), augment(batch(), config, seeded(5)))
    assert not torch.equal(augment(batch(), config, seeded(5)), augment(batch(), config, seeded(6)))
