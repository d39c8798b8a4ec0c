"""The batches of an epoch: gathered and augmented several at once, handed out one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from contracts.recipe import Augmentation
from services.training.augment import augment, mix
from services.training.objective import SoftLabels

# Values augmented at once: small operations then cost little an image, and the result stays in a CPU's cache.
_AHEAD = {"cpu": 1 << 20, "cuda": 1 << 26}


def drawn(
    images: Tensor,
    labels: Tensor,
    order: Tensor,
    bounds: Sequence[tuple[int, int]],
    config: Augmentation,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor | SoftLabels]]:
    """Batches of images and labels, on the images' device.

    Args:
        images: uint8 (n, height, width, channels).
        labels: int64 (n,).
        order: int64 (n,), the images' order in this epoch.
        bounds: (start, stop) of each batch in that order, without gaps.
        config: What may change, and by how much.
        generator: Source of the augmentation's randomness, on the images' device.

    Yields:
        uint8 or float32 (batch, height, width, channels), 0-255, and the labels, soft ones where images are mixed.
    """
    ahead = _AHEAD.get(images.device.type, 1 << 20) // images[0].numel()
    for group in _grouped(bounds, ahead):
        begin = group[0][0]
        index = order[begin : group[-1][1]]
        pixels, truth = images.index_select(0, index), labels.index_select(0, index)  # rows at once: 5x indexing
        if config.any:
            pixels = augment(pixels, config, generator)
        for start, stop in group:
            batch, target = pixels[start - begin : stop - begin], truth[start - begin : stop - begin]
            yield mix(batch, target, config, generator) if config.mixes else (batch, target)


def _grouped(bounds: Sequence[tuple[int, int]], images: int) -> Iterator[list[tuple[int, int]]]:
    """Batches in a row with at most `images` images together, or one batch where it alone has more."""
    group: list[tuple[int, int]] = []
    for start, stop in bounds:
        if group and stop - group[0][0] > images:
            yield group
            group = []
        group.append((start, stop))
    if group:
        yield group
