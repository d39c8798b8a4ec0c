"""The exponential moving average of a network's weights and of BatchNorm's running statistics (Polyak's idea, decayed).

Averaged weights lie nearer to the middle of the valley that the steps of SGD wander about in, and generalise better.
"""

from __future__ import annotations

import copy

import torch

from services.training.networks import ServedGraph


class Average:
    """A second graph whose weights follow the first one's, a little a step."""

    graph: ServedGraph
    """The averaged one, in eval mode."""

    def __init__(self, graph: ServedGraph, decay: float) -> None:
        """Start from a graph, on its device; its own weights are left alone.

        Args:
            graph: The network that is fitted.
            decay: The share that the average keeps of itself in a step, below 1; the first steps keep less.
        """
        self.graph = copy.deepcopy(graph).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0
        # Frozen weights never move, and are as many as a whole VGG16
        moving = {name for name, p in graph.named_parameters() if p.requires_grad}
        moving |= {name for name, buffer in graph.named_buffers() if buffer.is_floating_point()}
        averaged, current = self.graph.state_dict(), graph.state_dict()  # both share memory with their graphs
        self._averaged = [averaged[name] for name in sorted(moving)]
        self._current = [current[name] for name in sorted(moving)]

    @torch.no_grad()
    def update(self) -> None:
        """Follow one step of the fit."""
        self.steps += 1
        # Corrected at the start, where the average would otherwise hold on to the random initial weights
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self._averaged, self._current, 1 - decay)
