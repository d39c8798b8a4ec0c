"""Dropout whose random numbers are drawn quickly on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from services.training.networks.order import order_of

_COARSE: Final = 256
_FINE: Final = 65_536
"""The shares that eight and sixteen bits tell apart."""


class Dropout(nn.Dropout):
    """torch's (Srivastava et al. 2014), with several random numbers taken of each that the generator gives.

    On the CPU torch draws a double for every value, one after another, 9 ns each: a fifth of a step of a small network.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        if not self.training or not quickly_drawn(self.p, input.device):
            return super().forward(input)
        keep, scale = kept(input.shape, self.p, dtype=input.dtype, order=order_of(input))
        return (input * keep).mul_(scale)


def quickly_drawn(share: float, device: torch.device) -> bool:
    """Whether `kept` draws what a share asks for: on the CPU, and unless that is nothing or everything."""
    return device.type == "cpu" and 0 < round(share * _FINE) < _FINE


def kept(shape: Sequence[int], share: float, *, dtype: torch.dtype, order: torch.memory_format) -> tuple[Tensor, float]:
    """Draw what is kept where a share is dropped, in the order of memory, with torch's generator of the CPU.

    Eight bits tell a quarter or a half exactly, sixteen tell any share to 1 in 65,536; the factor is that of the share
    that is really dropped.

    Args:
        shape: Of the values.
        share: Of the values that are dropped; see `quickly_drawn`.
        dtype: Of the values. A product with truth values takes four times as long.
        order: In which the values lie in memory.

    Returns:
        Ones and zeros, and the factor that keeps the mean.
    """
    steps, kind = (_COARSE, torch.int8) if (share * _COARSE).is_integer() else (_FINE, torch.int16)
    below = round(share * steps)
    keep = torch.empty(tuple(shape), dtype=dtype, memory_format=order)
    words = torch.empty(-(-keep.numel() * kind.itemsize // 8), dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(kind)[: keep.numel()]
    torch.ge(numbers, below - steps // 2, out=keep.as_strided((keep.numel(),), (1,)))
    return keep, steps / (steps - below)
