"""Seeing inside a network: the activations of its convolutional stages, Grad-CAM, and the filters of its first layer.

Nothing here leaves a trace: modes are put back module by module, hooks are removed, the running statistics of BatchNorm
and all random generators stay as they were, and no gradient is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.training.evaluate import to_device
from services.training.networks import ServedGraph

_MOST_STAGES: Final = 6
_NOT_SHOWN: Final = (nn.MaxPool2d, nn.AvgPool2d, nn.Dropout)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inside:
    """What happened inside a network for some images."""

    activations: dict[str, NDArray[np.float32]]
    """By stage, from the first: (n, channels, height, width)."""
    cam: NDArray[np.float32]
    """Grad-CAM of `classes`, (n, height, width) of the images, 0-1: the share of the strongest place in each image."""
    classes: NDArray[np.int64]
    """(n,): the classes that `cam` explains."""
    probabilities: NDArray[np.float32]
    """(n, classes)."""


def look_inside(graph: ServedGraph, images: NDArray[np.uint8], *, classes: NDArray[np.int64] | None = None) -> Inside:
    """Run images through a network and keep what its stages answered.

    Grad-CAM is that of Selvaraju et al. 2017 at the last stage: its channels, weighted by the mean gradient of the
    class' logit over the positions, summed, and only what speaks for the class.

    Args:
        graph: In any mode, on any device.
        images: uint8 (n, height, width, channels).
        classes: What Grad-CAM explains, (n,); the predicted classes without it.
    """
    with _untouched(graph), torch.enable_grad():
        # Of a frozen network no parameter asks for gradients, so the pixels do.
        pixels = graph.normalize(to_device(images, graph.mean.device)).detach().requires_grad_()
        found = stages(graph.network, pixels)
        seen: dict[str, Tensor] = {}
        with _hooks({module: _keep(seen, name) for name, module in found.items()}):
            logits = graph.network(pixels)
        answers = graph.probabilities(logits.detach())
        chosen = answers.argmax(dim=1) if classes is None else torch.from_numpy(classes).to(answers.device)
        cam = torch.zeros(pixels.shape[0], *pixels.shape[2:], device=pixels.device)
        if found:
            cam = _cam(seen[list(found)[-1]], logits, chosen, cam.shape[1:])
    return Inside(
        activations={name: seen[name].detach().float().cpu().numpy() for name in found},
        cam=cam.cpu().numpy(),
        classes=chosen.cpu().numpy(),
        probabilities=answers.cpu().numpy(),
    )


def stages(network: nn.Module, pixels: Tensor) -> dict[str, nn.Module]:
    """The modules whose outputs show the convolutional stages of a network, by name, from the first; at most six.

    Of a convnet of blocks: of each block the layer before its pooling and dropout. Of any other network: for each size
    of feature map on which it convolves, the last module with an output of that size.
    """
    blocks = [(name, block) for name, block in network.named_children() if name.startswith("block")]
    if blocks and all(isinstance(block, nn.Sequential) for _, block in blocks):
        found = {name: [layer for layer in block.children() if not isinstance(layer, _NOT_SHOWN)][-1]
                 for name, block in blocks}  # fmt: skip
    else:
        found = _stages_by_size(network, pixels)
    kept = list(found.items())[-_MOST_STAGES:]
    return dict(kept)


def first_filters(network: nn.Module) -> NDArray[np.float32]:
    """The filters of the first convolution, (filters, channels, height, width)."""
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    return first.weight.detach().float().cpu().numpy()


def _stages_by_size(network: nn.Module, pixels: Tensor) -> dict[str, nn.Module]:
    names = {module: name for name, module in network.named_modules() if name}
    # The layer that gives the logits may be a convolution (SqueezeNet): from there on, maps are classes, not features.
    output = [module for module in names if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    done: list[tuple[nn.Module, Tensor]] = []
    after: list[nn.Module] = []

    def note(module: nn.Module, _: Any, answer: Any) -> None:
        if module is output:
            after.append(module)
        if isinstance(answer, Tensor) and answer.dim() == 4 and min(answer.shape[2:]) > 1 and not after:
            done.append((module, answer))

    with _hooks(dict.fromkeys(names, note)), torch.no_grad():
        network(pixels)
    sizes: dict[nn.Module, set[torch.Size]] = {}
    for module, answer in done:
        if isinstance(module, nn.Conv2d):
            sizes.setdefault(module, set()).add(answer.shape[2:])
    within = {module: {size for part in module.modules() for size in sizes.get(part, ())} for module in names}
    found: dict[torch.Size, nn.Module] = {}
    for size in dict.fromkeys(itertools.chain.from_iterable(sizes.values())):
        # The last module whose own convolutions all have this size; of nested ones it is the outermost.
        of_size = [module for module, answer in done if answer.shape[2:] == size]
        found[size] = [module for module in of_size if within[module] <= {size} and not _pools(module)][-1]
    order = {module: place for place, (module, _) in enumerate(done)}
    return {names[module]: module for module in sorted(found.values(), key=order.__getitem__)}


def _pools(module: nn.Module) -> bool:
    return "Pool" in type(module).__name__ or isinstance(module, nn.Dropout)


def _cam(maps: Tensor, logits: Tensor, classes: Tensor, size: Sequence[int]) -> Tensor:
    """Grad-CAM of maps (n, channels, h, w), of which the logits were computed, as (n, *size)."""
    # One sigmoid unit speaks for the second class, its negative for the first.
    scores = torch.cat((-logits, logits), dim=1) if logits.shape[1] == 1 else logits
    (gradients,) = torch.autograd.grad(scores.gather(1, classes[:, None]).sum(), maps)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    cam = (weights * maps.detach()).sum(dim=1, keepdim=True).relu().float()
    wide = functional.interpolate(cam, tuple(size), mode="bilinear")[:, 0]
    strongest = wide.amax(dim=(1, 2), keepdim=True)
    return wide / torch.where(strongest > 0, strongest, 1.0)  # where nothing speaks for the class it stays zero


def _keep(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(_: nn.Module, __: Any, answer: Tensor) -> Tensor:
        seen[name] = answer
        return answer.clone()  # what comes behind may work in place

    return hook


@contextmanager
def _hooks(hooks: Mapping[nn.Module, Callable[[nn.Module, Any, Any], Tensor | None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, hook in hooks.items():
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def _untouched(graph: ServedGraph) -> Iterator[None]:
    """Eval mode inside; afterwards every module has its own mode again (frozen layers may differ from the rest)."""
    modes = [(module, module.training) for module in graph.modules()]
    graph.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
