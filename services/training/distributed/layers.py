"""Layers that look at the whole batch, where a worker has a part of it: batch normalisation, dropout, dropped paths.

Batch normalisation takes mean and variance of all workers' rows, so that the statistics are those of one worker with
the whole batch. What is drawn, is drawn for the whole batch by every worker, who takes its own rows of it: the workers'
generators stay alike, and on the CPU the numbers are those of one worker.

torch's SyncBatchNorm is for GPUs only, and its step waits for the device.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from services.training.networks.dropout import Dropout, kept, quickly_drawn
from services.training.networks.order import order_of


class Rows(Protocol):
    """What the layers ask of the group."""

    @property
    def images(self) -> int:
        """Of the whole batch."""

    @property
    def rows(self) -> tuple[int, int]:
        """(start, stop): this worker's rows of it."""

    def total(self, values: Tensor) -> Tensor:
        """The sum of all workers' values."""

    def gathered(self, values: Tensor) -> Tensor:
        """(workers, *shape): all workers' values, from the first worker's."""


@contextmanager
def joined(network: nn.Module, group: Rows) -> Iterator[None]:
    """While it is open, the layers of a network that look at a whole batch are the group's, with the same weights."""
    replaced = [(name, layer, made) for name, layer in network.named_modules() if (made := _joined(layer, group))]
    for name, _, made in replaced:
        _put(network, name, made)
    try:
        yield
    finally:
        for name, layer, _ in replaced:
            _put(network, name, layer)


def _joined(layer: nn.Module, group: Rows) -> nn.Module | None:
    """The layer for a group; None where it looks at each image alone."""
    if isinstance(layer, _BatchNorm):
        return JoinedBatchNorm(layer, group)
    if isinstance(layer, nn.Dropout) and type(layer) in (nn.Dropout, Dropout) and layer.p > 0:
        return JoinedDropout(layer.p, group, quick=isinstance(layer, Dropout))
    paths = sys.modules.get("torchvision.ops")  # not imported for a network that is not torchvision's
    if paths is not None and isinstance(layer, paths.StochasticDepth) and layer.mode == "row" and layer.p > 0:
        return JoinedDropout(layer.p, group, whole_rows=True)
    return None


def _put(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)


class JoinedDropout(nn.Dropout):
    """Dropout of values, or of whole rows, whose mask is drawn for the rows of all workers."""

    def __init__(self, p: float, group: Rows, *, whole_rows: bool = False, quick: bool = False) -> None:
        """Make the layer.

        Args:
            p: The share that is dropped.
            group: Whose rows the mask is drawn for.
            whole_rows: Drop images instead of values.
            quick: Draw as `networks.dropout` does, instead of as torch does.
        """
        super().__init__(p)
        self._group, self._whole_rows, self._quick = group, whole_rows, quick

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        if not self.training:
            return input
        shape = (self._group.images, *([1] * (input.ndim - 1) if self._whole_rows else input.shape[1:]))
        # Numbers are drawn in the order of memory, so the mask lies in memory as the input does
        order = torch.contiguous_format if self._whole_rows else order_of(input)
        if self._quick and quickly_drawn(self.p, input.device):
            keep, scale = kept(shape, self.p, dtype=input.dtype, order=order)
            return (input * keep[slice(*self._group.rows)]).mul_(scale)
        mask = torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=order)
        mask.bernoulli_(1 - self.p)
        if self.p < 1:
            mask.div_(1 - self.p)
        return input * mask[slice(*self._group.rows)]


class JoinedBatchNorm(_BatchNorm):
    """Batch normalisation over the rows of all workers, with another layer's weights and running statistics."""

    def __init__(self, layer: _BatchNorm, group: Rows) -> None:
        super().__init__(
            layer.num_features, layer.eps, layer.momentum, affine=False, track_running_stats=False, device="meta"
        )
        self._group = group
        self.track_running_stats = layer.track_running_stats
        self.training = layer.training
        for name in ("weight", "bias"):
            setattr(self, name, getattr(layer, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(layer, name))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        if not self.training:
            running = self.running_mean, self.running_var
            return F.batch_norm(input, *running, self.weight, self.bias, self.running_mean is None, eps=self.eps)
        mean, variance, values = self._statistics(input)
        if self.running_mean is not None and self.running_var is not None:
            self._follow(mean, variance * (values / (values - 1)))
        normalised: Tensor = _Normalised.apply(
            input, self.weight, self.bias, mean, variance, self.eps, values, self._group.total
        )
        return normalised

    @torch.no_grad()
    def _statistics(self, input: Tensor) -> tuple[Tensor, Tensor, int]:  # noqa: A002
        """Mean and variance of each channel over all workers' rows, and of how many values they are."""
        each = math.prod(input.shape[2:])
        values = self._group.images * each
        if values == 1:
            # As torch has it, whose words a fit knows
            raise ValueError("Expected more than 1 value per channel when training, got one image of one position")
        own = torch.zeros(3, input.shape[1], device=input.device)  # mean, sum of squares around it, values
        if len(input):
            dimensions = [0, *range(2, input.ndim)]
            variance, mean = torch.var_mean(input.float(), dimensions, correction=0)
            own[0], own[1], own[2] = mean, variance * (len(input) * each), len(input) * each
        means, squares, counts = self._group.gathered(own).unbind(1)
        # Chan et al. 1979: around a common mean, which squares of large values would drown
        mean = (means * counts).sum(0) / values
        squares = (squares + counts * (means - mean).square()).sum(0)
        return mean, squares / values, values

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        running_mean, running_var = cast("Tensor", self.running_mean), cast("Tensor", self.running_var)
        share: float | Tensor = self.momentum or 0.0
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the plain mean of all batches
                share = 1 / self.num_batches_tracked.float()
        running_mean.lerp_(mean.to(running_mean.dtype), share)
        running_var.lerp_(variance.to(running_var.dtype), share)


class _Normalised(torch.autograd.Function):
    """(input - mean) / sqrt(variance + eps) · weight + bias, where mean and variance depend on all workers' inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        variance: Tensor,
        eps: float,
        count: int,
        total: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(values, weight, mean, torch.rsqrt(variance + eps))
        ctx.count, ctx.total, ctx.biased = count, total, bias is not None
        return F.batch_norm(values, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, weight, mean, inverse = ctx.saved_tensors
        shape = (1, -1, *([1] * (values.ndim - 2)))
        dimensions = [0, *range(2, values.ndim)]
        gradient = gradients[0].float()
        normal = (values.float() - mean.view(shape)) * inverse.view(shape)
        own = torch.stack((gradient.sum(dimensions), (gradient * normal).sum(dimensions)))
        # A weight's gradient is added up with all others; what reaches the input is each worker's own to know
        added = ctx.total(own.clone()) / ctx.count
        back = gradient - added[0].view(shape) - normal * added[1].view(shape)
        back = back * (inverse if weight is None else inverse * weight).view(shape)
        for_weight = own[1].to(weight.dtype) if weight is not None else None
        for_bias = own[0].to(weight.dtype if weight is not None else own.dtype) if ctx.biased else None
        return back.to(values.dtype), for_weight, for_bias, None, None, None, None, None
