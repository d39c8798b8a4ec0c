"""The weights of a network in the precision in which a step multiplies, kept from step to step.

Autocast casts every weight in every forward pass, and every gradient on its way back, one by one and each in a node of
the graph: thirty small operations for the five layers of the MNIST network. Here all weights are cast by one call after
they have changed, and all gradients by another, which is 1 to 1.6% of its step. The numbers are the same, but for a
weight that two layers share: its gradients are added in low precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

_MULTIPLYING: Final = (nn.Conv2d, nn.Linear)
"""Layers that autocast computes in low precision; normalisation keeps its weights in fp32."""


class LowWeights:
    """Copies of the weights of a network's convolutions and dense layers, which take their place in a forward pass."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        """Copy the weights as they are now.

        Args:
            network: Its weights may only be changed between a step's end and `refresh`.
            dtype: Of the copies.
        """
        copies: dict[nn.Parameter, nn.Parameter] = {}
        self._places: list[tuple[dict[str, Any], str, nn.Parameter, nn.Parameter]] = []
        for module in network.modules():
            if isinstance(module, _MULTIPLYING):
                for name, weight in module.named_parameters(recurse=False):
                    if weight not in copies:  # one that two layers share has one copy, which gets both gradients
                        copy = weight.detach().to(dtype, memory_format=torch.preserve_format)
                        copies[weight] = nn.Parameter(copy, requires_grad=weight.requires_grad)
                    self._places.append((module._parameters, name, weight, copies[weight]))  # noqa: SLF001
        trained = [(weight, copy) for weight, copy in copies.items() if weight.requires_grad]
        self._weights: list[Tensor] = [weight for weight, _ in trained]
        self._copies: list[Tensor] = [copy.detach() for _, copy in trained]  # the same memory, unknown to autograd
        self._leaves = [copy for _, copy in trained]
        self._gradients = [torch.empty_like(weight) for weight in self._weights]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While it is open, the layers multiply with the copies."""
        for parameters, name, _, copy in self._places:
            parameters[name] = copy
        try:
            yield
        finally:
            for parameters, name, weight, _ in self._places:
                parameters[name] = weight

    @torch.no_grad()
    def hand_over(self) -> None:
        """Give the weights the gradients that the copies got; None where one got none."""
        low, full = [], []
        for leaf, weight, gradient in zip(self._leaves, self._weights, self._gradients, strict=True):
            if leaf.grad is None:
                weight.grad = None
                continue
            weight.grad = gradient
            low.append(leaf.grad)
            full.append(gradient)
            leaf.grad = None
        if low:
            torch._foreach_copy_(full, low)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights again, after a step has changed them."""
        if self._copies:
            torch._foreach_copy_(self._copies, self._weights)
