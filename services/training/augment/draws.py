"""Random numbers for the images of a batch, one each, also where only some of its rows are at hand.

The workers of a fit all draw for the whole batch and each takes the numbers of its own rows, so that an image is
changed alike however many of them share the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Shared:
    """A generator for a batch of which this process holds some rows."""

    generator: torch.Generator
    images: int
    """Of the whole batch."""
    rows: Tensor
    """int64 (n,), the places in it of those that are here, on the generator's device."""

    @property
    def device(self) -> torch.device:
        return self.generator.device


Randomness = torch.Generator | Shared
"""Where numbers come from: a generator alone, where the whole batch is here."""


def uniform(images: int, randomness: Randomness, *, each: tuple[int, ...] = ()) -> Tensor:
    """float32 (*each, images) from 0 to 1, on the generator's device; `images` are those that are here."""
    if isinstance(randomness, Shared):
        whole = torch.rand((*each, randomness.images), generator=randomness.generator, device=randomness.device)
        return whole[..., randomness.rows]
    return torch.rand((*each, images), generator=randomness, device=randomness.device)


def integers(high: int, images: int, randomness: Randomness, *, each: tuple[int, ...] = ()) -> Tensor:
    """int64 (*each, images) from 0 to `high` - 1; see `uniform`."""
    if isinstance(randomness, Shared):
        shape = (*each, randomness.images)
        whole = torch.randint(high, shape, generator=randomness.generator, device=randomness.device)
        return whole[..., randomness.rows]
    return torch.randint(high, (*each, images), generator=randomness, device=randomness.device)
