"""Mixup (Zhang et al. 2017) and CutMix (Yun et al. 2019): an image and its label mixed with another one's.

The partner is the image before it in the batch: the order is random already, and no image gets itself.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
import torch
from torch import Tensor

from contracts.recipe import Augmentation
from services.training.augment.draws import Randomness, integers, uniform
from services.training.augment.geometry import box
from services.training.objective import SoftLabels

_QUANTILES: Final = 4096


def mix(images: Tensor, labels: Tensor, config: Augmentation, generator: Randomness) -> tuple[Tensor, SoftLabels]:
    """Mix each image of a batch with another; where the recipe has both ways, each image takes one of them.

    Args:
        images: uint8 or float32 (batch, height, width, channels), values 0-255.
        labels: int64 (batch,).
        config: `mixup` and `cutmix`, the alphas of their distributions.
        generator: Source of randomness, on the images' device.

    Returns:
        The images, uint8 where none was blended, and their labels.
    """
    partners, shares = images.roll(1, 0), []
    pasted = uniform(len(labels), generator) < 0.5
    if config.mixup:
        share = draw_shares(len(labels), config.mixup, generator)
        if config.cutmix:
            share = share.where(~pasted, 1.0)
        shares.append(share)
        images = mixup(images, partners, share)
    if config.cutmix:
        share = draw_shares(len(labels), config.cutmix, generator)
        if config.mixup:
            share = share.where(pasted, 1.0)
        inside = draw_boxes(share, images.shape[1], images.shape[2], generator)
        images = cutmix(images, partners, inside)
        shares.append(1 - inside.float().mean((1, 2, 3)))  # what is left after the box is clipped at the edge
    share = shares[0] * shares[-1] if len(shares) == 2 else shares[0]  # one of two is 1
    return images, SoftLabels(labels, labels.roll(1, 0), share)


def mixup(images: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """share · image + (1 - share) · partner, float32; `share` is (batch,)."""
    return torch.lerp(partners.float(), images.float(), share[:, None, None, None])


def cutmix(images: Tensor, partners: Tensor, inside: Tensor) -> Tensor:
    """The partner where `inside`, bool (batch, height, width, 1), says so, and the image elsewhere."""
    return torch.where(inside, partners, images)


def draw_boxes(share: Tensor, height: int, width: int, generator: Randomness) -> Tensor:
    """bool (batch, height, width, 1): a box that leaves `share` of each image; its middle is anywhere, so that a part
    of it may fall outside."""
    middle_y = integers(height, len(share), generator)
    middle_x = integers(width, len(share), generator)
    half = (1 - share).sqrt() / 2
    half_y, half_x = (half * height).int(), (half * width).int()
    bounds = (middle_y - half_y, middle_y + half_y, middle_x - half_x, middle_x + half_x)
    return box(height, width, *(bound[:, None] for bound in bounds))


def draw_shares(batch: int, alpha: float, generator: Randomness) -> Tensor:
    """float32 (batch,) from Beta(alpha, alpha)."""
    # torch draws from Beta by its global generator only, so one of the distribution's quantiles is drawn instead.
    index = integers(_QUANTILES, batch, generator)
    return _beta_quantiles(alpha, generator.device)[index]


@cache
def _beta_quantiles(alpha: float, device: torch.device) -> Tensor:
    from scipy import special  # with what it brings, 20 MB and a tenth of a second: most fits mix nothing

    values = special.betaincinv(alpha, alpha, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    return torch.from_numpy(values).to(device, torch.float32)
