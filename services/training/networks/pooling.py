"""Max pooling whose backward pass is fast on the CPU: the same values and the same gradients, to the bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from services.training.networks.order import order_of


class MaxPool2d(nn.MaxPool2d):
    """torch's, over windows that do not overlap.

    torch's backward pass on the CPU adds every gradient to its place one by one, in channels_last some 10 ns each: a
    tenth of a step and more. Where no place can get two gradients they may as well be written, which `max_unpool2d`
    does four times as fast.
    """

    def __init__(self, size: int) -> None:
        """Windows of `size` x `size` side by side; rows and columns that are left over are dropped."""
        super().__init__(size)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name for it
        if input.device.type == "cpu" and self.training and torch.is_grad_enabled():
            pooled: Tensor = _Pooled.apply(input, self.kernel_size)
        else:
            pooled = super().forward(input)
        return pooled


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, size: int) -> Tensor:
        pooled, places = torch.ops.aten.max_pool2d_with_indices(values, [size, size], [size, size])
        ctx.save_for_backward(places)
        ctx.sides = values.shape[2:]
        return pooled  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        # As the forward pass left it; a gradient from a layer that flattens comes in another order of memory
        gradient = gradients[0].contiguous(memory_format=order_of(places))
        return torch.ops.aten.max_unpool2d(gradient, places, list(ctx.sides)), None
