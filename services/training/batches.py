"""The batches of a fit: gathered and augmented several at once, handed out one by one, the same from any start."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from contracts.recipe import Augmentation
from services.training.augment import augment, mix
from services.training.augment.draws import Randomness, Shared
from services.training.group import ALONE, Group
from services.training.loader import Source
from services.training.objective import SoftLabels

# Values augmented at once: small operations then cost little an image, and the result stays in a CPU's cache.
_AHEAD: Final = {"cpu": 1 << 20, "cuda": 1 << 26}


class Batches:
    """Every batch of a fit, a function of the seed and of its place (epoch, batch): a resumed fit needs no more.

    The workers of a group get a part of each batch: the rows of one worker's whole batch, changed as they are there.
    """

    def __init__(
        self, source: Source, *, batch_size: int, augmentation: Augmentation, seed: int, group: Group = ALONE
    ) -> None:
        """Make the batches of a source.

        Args:
            source: Images and labels.
            batch_size: See `batch_bounds`.
            augmentation: What may change, and by how much.
            seed: Of the images' order, which is the same on every device, and of the augmentation.
            group: The workers that share each batch.
        """
        self._source, self._augmentation, self._seed, self._shared = source, augmentation, seed, group.size > 1
        self.bounds = batch_bounds(len(source), batch_size)
        """(start, stop) of each whole batch in the order of an epoch."""
        ahead = _AHEAD.get(source.device.type, 1 << 20) // math.prod(source.image)
        whole = _grouped(self.bounds, ahead)
        self._sections = [_section(bounds, group, mixes=augmentation.mixes) for bounds in whole]

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return len(self.bounds)

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[tuple[Tensor, Tensor | SoftLabels]]:
        """The batches of an epoch, on the source's device, from the batch `first` on; a worker's own rows of each.

        Yields:
            uint8 or float32 (batch, height, width, channels), 0-255, and the labels, soft ones where images are mixed.
        """
        order = torch.randperm(len(self._source), generator=_seeded(torch.device("cpu"), self._seed, epoch, "order"))
        numbers = list(itertools.accumulate((len(section.parts) for section in self._sections), initial=0))
        begin = next((place for place, number in enumerate(numbers[1:]) if number > first), len(self._sections))
        sections = self._sections[begin:]
        if self._shared and sections:
            order = order[torch.cat([section.places for section in sections])]
            ends = itertools.accumulate((len(section.places) for section in sections), initial=0)
            rows = self._source.rows(list(itertools.pairwise(ends)), order)
        else:
            rows = self._source.rows([(section.begin, section.begin + section.images) for section in sections], order)
        for section, number, (pixels, labels) in zip(sections, numbers[begin:], rows, strict=False):
            made = self._section(section, pixels, labels, _seeded(pixels.device, self._seed, epoch, number))
            # Those before the first are made, too, so that the others are drawn as they were
            yield from itertools.islice(made, max(0, first - number), None)

    def _section(
        self, section: _Section, pixels: Tensor, labels: Tensor, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor | SoftLabels]]:
        config = self._augmentation
        if config.any:
            pixels = augment(pixels, config, self._drawn(generator, section.images, section.places - section.begin))
        for part in section.parts:
            batch, truth = pixels[part.start : part.stop], labels[part.start : part.stop]
            if config.mixes:
                mixed, soft = mix(batch, truth, config, self._drawn(generator, part.images, part.rows))
                yield mixed[part.partners :], soft.without(part.partners)
            else:
                yield batch, truth

    def _drawn(self, generator: torch.Generator, images: int, rows: Tensor) -> Randomness:
        return Shared(generator, images, rows.to(generator.device)) if self._shared else generator


@dataclass(frozen=True, slots=True)
class _Part:
    """What a worker has of a batch."""

    start: int
    stop: int
    """Where it stands among the worker's rows of its section."""
    images: int
    """Of the whole batch."""
    rows: Tensor
    """int64 (n,), its places in the batch."""
    partners: int
    """How many rows at its beginning are there for their neighbours to be mixed with, and are left out then."""


@dataclass(frozen=True, slots=True)
class _Section:
    """Batches in a row that are gathered and augmented at once, as far as a worker has them."""

    begin: int
    """Their first place in the epoch."""
    images: int
    """Of the whole batches."""
    places: Tensor
    """int64 (n,), the worker's places in the epoch."""
    parts: list[_Part]


def _section(bounds: Sequence[tuple[int, int]], group: Group, *, mixes: bool) -> _Section:
    parts: list[_Part] = []
    places: list[Tensor] = []
    taken = 0
    for start, stop in bounds:
        begin, end = group.share(start, stop)
        rows = torch.arange(begin, end)
        # An image is mixed with the one before it in the batch, which may be another worker's: it comes along
        partners = int(mixes and group.size > 1 and end > begin)
        if partners:
            before = begin - 1 if begin > start else stop - 1
            rows = torch.cat((torch.tensor([before]), rows))
        places.append(rows)
        parts.append(_Part(taken, taken + len(rows), stop - start, rows - start, partners))
        taken += len(rows)
    return _Section(bounds[0][0], bounds[-1][1] - bounds[0][0], torch.cat(places), parts)


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
