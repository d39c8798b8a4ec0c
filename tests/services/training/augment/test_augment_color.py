from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from contracts.recipe import Augmentation
from services.training.augment.color import Jitter, draw_jitter, jitter

reference: Any = functional
FACTORS = torch.tensor([0.0, 0.5, 1.0, 1.4, 2.0])
TURNS = torch.tensor([-0.5, -0.2, 0.0, 0.1, 0.5])


def images(channels: int = 3) -> Tensor:
    drawn = torch.randint(0, 256, (5, 9, 7, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    drawn[:, 0, 0] = 128  # gray, black, white and a pure colour are where hue and saturation are not defined
    drawn[:, 0, 1] = 0
    drawn[:, 0, 2] = 255
    drawn[:, 0, 3] = torch.tensor([255, 0, 0][:channels], dtype=torch.uint8)
    return drawn


@pytest.mark.parametrize(
    ("name", "adjust", "values"),
    [
        ("brightness", reference.adjust_brightness, FACTORS),
        ("contrast", reference.adjust_contrast, FACTORS),
        ("saturation", reference.adjust_saturation, FACTORS),
        ("hue", reference.adjust_hue, TURNS),
    ],
)
def test_a_known_factor_gives_what_torchvision_gives(name: str, adjust: Any, values: Tensor) -> None:
    ours = jitter(images(), Jitter(**{name: values}))
    for image, after, value in zip(images(), ours, values.tolist(), strict=True):
        theirs = adjust(image.permute(2, 0, 1).float() / 255, value) * 255
        torch.testing.assert_close(after, theirs.permute(1, 2, 0), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_a_grayscale_image_agrees_too(name: str) -> None:
    adjust = {"brightness": reference.adjust_brightness, "contrast": reference.adjust_contrast}[name]
    ours = jitter(images(1), Jitter(**{name: FACTORS}))
    for image, after, value in zip(images(1), ours, FACTORS.tolist(), strict=True):
        theirs = adjust(image.permute(2, 0, 1).float() / 255, value) * 255
        torch.testing.assert_close(after, theirs.permute(1, 2, 0), atol=0.02, rtol=0)


def test_factors_are_drawn_for_each_image_within_the_recipe_and_only_for_what_it_asks() -> None:
    config = Augmentation(brightness=0.4, hue=0.1)
    drawn = draw_jitter(2000, config, torch.Generator().manual_seed(0))
    assert drawn.contrast is None
    assert drawn.saturation is None
    assert drawn.brightness is not None
    assert drawn.hue is not None
    assert 0.6 <= float(drawn.brightness.min()) < 0.61
    assert 1.39 < float(drawn.brightness.max()) <= 1.4
    assert 0.099 < float(drawn.hue.abs().max()) <= 0.1
    assert len(set(drawn.brightness.tolist())) > 1900
