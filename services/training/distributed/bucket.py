"""The gradients of all parameters in one tensor, which is added up over the workers in one go.

Not torch's DistributedDataParallel: it overlaps the exchange with the backward pass, which gains what the exchange
takes, and for networks of this size that is the time of a few messages more than that of their bytes. One tensor is
one message, carries the loss and the right answers along, weighs uneven parts by their rows, and leaves the network
and the names of its weights as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import torch
from torch import Tensor, nn

_ALIGNED: Final = 16
"""Every gradient begins at a multiple of so many values: vectorised kernels want 64 bytes."""


class Bucket:
    """A flat tensor with a place for each gradient, and two for the sums that come along."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make places for the parameters that have a gradient, as they have after a first backward pass."""
        self._parameters = [parameter for parameter in parameters if parameter.grad is not None]
        first = self._parameters[0]
        size, begins = 0, []
        for parameter in self._parameters:
            begins.append(size)
            size += -(-parameter.numel() // _ALIGNED) * _ALIGNED
        # Zeros, because what lies between two gradients is added up with them
        self._flat = torch.zeros(size + 2, dtype=first.dtype, device=first.device)
        # As the parameters lie in memory: an optimizer's fused kernels want both alike
        self._places = [
            self._flat[begin : begin + parameter.numel()].as_strided(parameter.size(), parameter.stride(), begin)
            for begin, parameter in zip(begins, self._parameters, strict=True)
        ]

    @torch.no_grad()
    def add(self, sums: Tensor, reduce: Callable[[Tensor], None]) -> Tensor:
        """Add up the gradients and two more values; nothing in it waits for the device.

        Args:
            sums: (2,).
            reduce: Makes a tensor the sum of all workers' ones, in place.

        Returns:
            (2,), the sums of all workers. The parameters' gradients are those of all workers, too.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        torch._foreach_copy_(self._places, gradients)
        self._flat[-2:] = sums
        reduce(self._flat)
        for parameter, place in zip(self._parameters, self._places, strict=True):
            parameter.grad = place  # not copied back: the next backward pass makes gradients of its own
        return self._flat[-2:].clone()
