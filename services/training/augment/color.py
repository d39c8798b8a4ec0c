"""Colour jitter: brightness, contrast, saturation and hue, in that order, each by a factor of the image's own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from contracts.recipe import Augmentation
from services.training.augment.draws import Randomness, uniform

_GRAY = (0.2989, 0.587, 0.114)  # ITU-R BT.601, in the digits that torchvision and Pillow's docs give


class Jitter(NamedTuple):
    """float32 (batch,) each, or None for what stays as it is."""

    brightness: Tensor | None = None
    contrast: Tensor | None = None
    saturation: Tensor | None = None
    hue: Tensor | None = None
    """Turn of the colour circle, from -0.5 to 0.5; the other three are factors around 1."""


def draw_jitter(batch: int, config: Augmentation, generator: Randomness) -> Jitter:
    """Draw the factors of each image of a batch."""

    def around(middle: float, reach: float) -> Tensor | None:
        if not reach:
            return None
        return uniform(batch, generator) * (2 * reach) + (middle - reach)

    return Jitter(
        around(1, config.brightness), around(1, config.contrast), around(1, config.saturation), around(0, config.hue)
    )


def jitter(images: Tensor, factors: Jitter) -> Tensor:
    """Recolour a batch (batch, height, width, channels) of values 0-255; float32 0-255.

    Saturation and hue need three channels.
    """
    values = images.float()
    if factors.brightness is not None:
        values = (values * _each(factors.brightness)).clamp_(0, 255)
    if factors.contrast is not None:
        values = _blend(values, _gray(values).mean((1, 2, 3), keepdim=True), factors.contrast)
    if factors.saturation is not None:
        values = _blend(values, _gray(values), factors.saturation)
    return values if factors.hue is None else _turn(values, factors.hue)


def _each(factor: Tensor) -> Tensor:
    return factor[:, None, None, None]


def _blend(values: Tensor, toward: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(toward.expand_as(values), values, _each(factor)).clamp_(0, 255)


def _gray(values: Tensor) -> Tensor:
    if values.shape[3] == 1:
        return values
    return (values @ torch.tensor(_GRAY, device=values.device))[..., None]


def _turn(values: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue, with value and chroma kept (the HSV hexcone, Smith 1978)."""
    top, chroma = values.amax(3), values.amax(3) - values.amin(3)
    red, green, blue = values.unbind(3)
    divisor = chroma.clamp_min(1e-6)  # gray has no hue: its chroma of 0 leaves it gray
    sextant = torch.where(
        top == red,
        (green - blue) / divisor,
        torch.where(top == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sextant = sextant + 6 * turn[:, None, None]
    channels = []
    for offset in (5, 3, 1):
        k = (sextant + offset) % 6
        channels.append(top - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, dim=3)
