from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contracts.recipe import Augmentation
from services.training.augment import augment


def batch(n: int = 64, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 12, 12, channels), dtype=torch.uint8, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


EVERYTHING = Augmentation(
    rotation=40, shift=0.2, shear=10, zoom=0.2, flip_horizontal=True, flip_vertical=True, crop_padding=2, cutout=3,
    brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1, fill="reflect",
)  # fmt: skip


def test_nothing_is_changed_without_augmentation() -> None:
    assert torch.equal(augment(batch(), Augmentation(), seeded()), batch())
    assert not Augmentation(fill="constant", fill_value=3).any


def test_about_half_of_the_images_are_flipped_and_whole() -> None:
    images = batch(400)
    changed = augment(images, Augmentation(flip_horizontal=True), seeded())
    same = (changed == images).flatten(1).all(1)
    flipped = (changed == images.flip(2)).flatten(1).all(1)
    assert bool((same | flipped).all())
    assert 150 < int(flipped.sum()) < 250


def test_the_same_generator_gives_the_same_images() -> None:
    assert torch.equal(augment(batch(), EVERYTHING, seeded(5)), augment(batch(), EVERYTHING, seeded(5)))
    assert not torch.equal(augment(batch(), EVERYTHING, seeded(5)), augment(batch(), EVERYTHING, seeded(6)))


def test_everything_at_once_keeps_shape_and_range() -> None:
    changed = augment(batch(), EVERYTHING, seeded())
    assert changed.shape == batch().shape
    assert 0 <= float(changed.min()) < float(changed.max()) <= 255


@pytest.mark.parametrize("changes", [{"flip_vertical": True}, {"crop_padding": 2}, {"cutout": 3}])
def test_what_moves_whole_pixels_stays_uint8(changes: dict[str, object]) -> None:
    assert augment(batch(), Augmentation.model_validate(changes), seeded()).dtype == torch.uint8


def test_mixing_is_left_to_mix() -> None:
    assert torch.equal(augment(batch(), Augmentation(mixup=1.0, cutmix=1.0), seeded()), batch())
