"""The features of a held base, computed once.

Where nothing below the head learns or is drawn, each image's features are the same in every epoch, and the steps are
taken on the head alone.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from contracts.recipe import Recipe
from services.training.data.dataset import Split
from services.training.device import Plan
from services.training.evaluate import batch_size, to_device
from services.training.loader import Resident, Source
from services.training.networks import ServedGraph
from services.training.networks.layers import head_of, within
from services.training.room import resident_limit

_PROBED: Final = 2
"""Images on which it is tried whether the head's answers are the network's."""


class HeadGraph(ServedGraph):
    """The head of a graph, for features in the place of images; it shares the head's weights."""

    def __init__(self, whole: ServedGraph) -> None:
        super().__init__(whole.network.get_submodule(head_of(whole.network)), output=whole.output, mean=(0,), std=(1,))

    def normalize(self, images: Tensor) -> Tensor:
        """Features are as they are."""
        return images


class FittedPart:
    """What a fit works on: the graph and its images, or its head and the images' features, as the plan says."""

    graph: ServedGraph
    source: Source
    held_out: Source

    def __init__(self, whole: ServedGraph, plan: Plan, source: Source, held_out: Source) -> None:
        """Compute the features of both sources where the plan has them computed once.

        Args:
            whole: On the plan's device.
            plan: How.
            source: The images to fit on.
            held_out: Those that the fit is judged by.
        """
        self._whole = whole
        self.graph, self.source, self.held_out = whole, source, held_out
        if plan.features_once:
            self.graph = HeadGraph(whole).to(plan.device)
            self.source, self.held_out = (_features(whole, plan, each) for each in (source, held_out))

    def whole(self, judged: ServedGraph) -> ServedGraph:
        """The whole graph with the weights of `judged`: for who looks at a network, until the next step."""
        if self.graph is self._whole:
            return judged
        _replace(self._whole.network, head_of(self._whole.network), judged.network)
        return self._whole

    def close(self) -> None:
        """Put what was fitted back into the whole graph, in eval mode."""
        self.whole(self.graph)
        self._whole.eval()


def may_be_held(graph: ServedGraph, recipe: Recipe, plan: Plan, *splits: Split) -> str:
    """Why the features of a recipe can be computed once, as `yes: …`, or why not.

    Args:
        graph: On the CPU.
        recipe: Augmentation changes the features of every epoch.
        plan: Its device must have room for them.
        splits: Whose features.
    """
    head = head_of(graph.network)
    if any(p.requires_grad for name, p in graph.network.named_parameters() if not within(name, head)):
        return "no: the base is fitted, too"
    if recipe.augmentation.any:
        return "no: augmentation changes the images in every epoch"
    drawn = [name for name, module in graph.network.named_modules() if not within(name, head) and _is_drawn(module)]
    if drawn:
        return f"no: {drawn[0]} of the base differs from step to step"
    values = _values_behind(graph, splits[0])
    if values is None:
        return "no: the head is not the last part of the network"
    size = sum(len(split) for split in splits) * values * (4 if plan.precision == "fp32" else 2)
    limit = resident_limit(plan.device)
    if size > limit:
        return f"no: they would take {size / 1e9:.3g} GB, more than the {limit / 1e9:.3g} GB that may"
    return f"yes: the base is held and nothing changes the images; {size / 1e9:.3g} GB"


def _is_drawn(module: nn.Module) -> bool:
    from torchvision.ops import StochasticDepth  # a base that is held is torchvision's

    if isinstance(module, _NormBase):  # held ones with weights are in eval mode in training, too
        return module.weight is None or module.weight.requires_grad
    return isinstance(module, _DropoutNd | StochasticDepth) and module.p > 0


@torch.no_grad()
def _values_behind(graph: ServedGraph, split: Split) -> int | None:
    """How many values of an image reach the head; None where the head's answers are not the network's."""
    was_training = graph.training
    graph.eval()
    pixels = graph.normalize(to_device(split.images[:_PROBED], graph.mean.device))
    features, logits = _captured(graph, pixels)
    answers = graph.network.get_submodule(head_of(graph.network))(features)
    graph.train(was_training)
    same = answers.shape == logits.shape and torch.equal(answers, logits)
    return features[0].numel() if same else None


def _captured(graph: ServedGraph, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What reaches the head, and the network's answers."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    hook = graph.network.get_submodule(head_of(graph.network)).register_forward_pre_hook(keep)
    try:
        logits = graph.network(pixels)
    finally:
        hook.remove()
    return seen[-1], logits


@torch.no_grad()
def _features(graph: ServedGraph, plan: Plan, source: Source) -> Resident:
    was_training = graph.training
    graph.eval()
    size = batch_size(source.image, source.device)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for images, truth in source.rows([(at, min(at + size, len(source))) for at in range(0, len(source), size)]):
        with plan.autocast():
            pixels = graph.normalize(images).contiguous(memory_format=plan.memory_format)
            features.append(_captured(graph, pixels)[0])
        labels.append(truth)
    graph.train(was_training)
    return Resident(torch.cat(features), torch.cat(labels), reason="the features of a held base, computed once")


def _replace(network: nn.Module, name: str, part: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, part)
