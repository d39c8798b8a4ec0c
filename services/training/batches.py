"""The batches of a fit: gathered and augmented several at once, handed out one by one, the same from any start."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from contracts.recipe import Augmentation
from services.training.augment import augment, mix
from services.training.loader import Source
from services.training.objective import SoftLabels

# Values augmented at once: small operations then cost little an image, and the result stays in a CPU's cache.
_AHEAD: Final = {"cpu": 1 << 20, "cuda": 1 << 26}


class Batches:
    """Every batch of a fit, a function of the seed and of its place (epoch, batch): a resumed fit needs no more."""

    def __init__(self, source: Source, *, batch_size: int, augmentation: Augmentation, seed: int) -> None:
        """Make the batches of a source.

        Args:
            source: Images and labels.
            batch_size: See `batch_bounds`.
            augmentation: What may change, and by how much.
            seed: Of the images' order, which is the same on every device, and of the augmentation.
        """
        self._source, self._augmentation, self._seed = source, augmentation, seed
        self.bounds = batch_bounds(len(source), batch_size)
        """(start, stop) of each batch in the order of an epoch."""
        ahead = _AHEAD.get(source.device.type, 1 << 20) // math.prod(source.image)
        self._groups = list(_grouped(self.bounds, ahead))

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return len(self.bounds)

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[tuple[Tensor, Tensor | SoftLabels]]:
        """The batches of an epoch, on the source's device, from the batch `first` on.

        Yields:
            uint8 or float32 (batch, height, width, channels), 0-255, and the labels, soft ones where images are mixed.
        """
        order = torch.randperm(len(self._source), generator=_seeded(torch.device("cpu"), self._seed, epoch, "order"))
        numbers = list(itertools.accumulate((len(group) for group in self._groups), initial=0))
        begin = next((place for place, number in enumerate(numbers[1:]) if number > first), len(self._groups))
        groups = self._groups[begin:]
        rows = self._source.rows([(group[0][0], group[-1][1]) for group in groups], order)
        for group, number, (pixels, labels) in zip(groups, numbers[begin:], rows, strict=False):
            made = self._group(group, pixels, labels, _seeded(pixels.device, self._seed, epoch, number))
            # Those before the first are made, too, so that the others are drawn as they were
            yield from itertools.islice(made, max(0, first - number), None)

    def _group(
        self, group: Sequence[tuple[int, int]], pixels: Tensor, labels: Tensor, randomness: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor | SoftLabels]]:
        config, begin = self._augmentation, group[0][0]
        if config.any:
            pixels = augment(pixels, config, randomness)
        for start, stop in group:
            batch, truth = pixels[start - begin : stop - begin], labels[start - begin : stop - begin]
            yield mix(batch, truth, config, randomness) if config.mixes else (batch, truth)


def batch_bounds(images: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of every batch of an epoch; the last one may be short, or one image longer than `size`.

    An image that would be left alone joins the batch before it: BatchNorm over a 1x1 feature map has nothing to
    normalise with in a batch of one.
    """
    starts = list(range(0, images, size))
    if size > 1 and images % size == 1 and len(starts) > 1:
        starts.pop()
    return list(itertools.pairwise([*starts, images]))


def _seeded(device: torch.device, *place: object) -> torch.Generator:
    """A generator for one place of a fit; neighbouring seeds would not do, since 1, 2 is not far from 2, 1."""
    digest = hashlib.sha256(repr(place).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))


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
