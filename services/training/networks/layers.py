"""Layers by name: which parameters a name in a recipe means, and which of them are held.

A name is torch's (`features.10`, `layer3.0`), one of VGG's as Keras has them (`block3`, `block3_conv1`), `base` (all
but the head) or `head`; it means the layer with all that is in it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from contracts.errors import RecipeError

BASE, HEAD = "base", "head"
_KERAS = {nn.Conv2d: "conv", nn.BatchNorm2d: "norm", nn.MaxPool2d: "pool"}


def head_of(network: nn.Module) -> str:
    """torch's name of the head: the dense layers that end in `output`, or the last layer alone."""
    layers: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1].removesuffix(".output")


def within(name: str, layer: str) -> bool:
    """Whether a parameter or layer is `layer` or lies in it (`features.1` is no part of `features.10`)."""
    return name == layer or name.startswith(f"{layer}.")


def parameters_of(network: nn.Module, names: Iterable[str], *, key: str) -> set[str]:
    """torch's names of the parameters that a recipe's names mean.

    Args:
        network: A network of `build`.
        names: As the recipe has them.
        key: Where in the recipe they stand, for the error.

    Raises:
        RecipeError: a name that the network does not have; the nearest ones are given.
    """
    parameters = [name for name, _ in network.named_parameters()]
    head = head_of(network)
    found: set[str] = set()
    for name in names:
        if name in (BASE, HEAD):
            found |= {parameter for parameter in parameters if within(parameter, head) == (name == HEAD)}
        else:
            layers = _layers(network, name, key)
            found |= {parameter for parameter in parameters if any(within(parameter, layer) for layer in layers)}
    return found


def parameters_before(network: nn.Module, name: str, *, key: str) -> set[str]:
    """torch's names of the base's parameters that stand before a layer, in the order in which torch lists layers.

    Raises:
        RecipeError: as `parameters_of`.
    """
    first = _layers(network, head_of(network) if name == HEAD else name, key)[0]
    order: list[str] = []
    for owner, module in network.named_modules():
        order += [owner, *(f"{owner}.{own}".lstrip(".") for own, _ in module.named_parameters(recurse=False))]
    # A layer of the head is no reason to hold the part of the head that stands before it.
    return set(order[: order.index(first)]) & parameters_of(network, [BASE], key=key)


def freeze(network: nn.Module, *, frozen: Iterable[str], trainable_from: str | None) -> None:
    """Hold layers: their parameters get no gradient and are in no optimizer.

    Held layers in front of the first one that is trained cost no memory and no backward pass: torch records nothing
    where neither the input nor a weight needs a gradient.

    Raises:
        RecipeError: a layer is not known, or nothing is left to train.
    """
    held = parameters_of(network, frozen, key="model.frozen")
    if trainable_from is not None:
        held |= parameters_before(network, trainable_from, key="model.trainable_from")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in held)
    if held and all(name in held for name, _ in network.named_parameters()):
        raise RecipeError("model.frozen holds every layer, the head too; leave something to train, such as the head.")


def hold_statistics(network: nn.Module) -> None:
    """Put every BatchNorm whose weights are held into eval mode: its running statistics are held with them."""
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad:
            module.eval()


def keras_names(network: nn.Module) -> dict[str, list[str]]:
    """Keras' names of a VGG's layers -> torch's: a block ends with its pooling, its convolutions count from 1."""
    from torchvision.models import VGG  # seconds to import, and most networks are none of torchvision's

    if not isinstance(network, VGG):
        return {}
    names: dict[str, list[str]] = {}
    block, counts = 1, {"conv": 0, "norm": 0}
    for index, layer in enumerate(network.features.children()):
        kind = _KERAS.get(type(layer))
        names.setdefault(f"block{block}", []).append(f"features.{index}")
        if kind == "pool":
            names[f"block{block}_pool"] = [f"features.{index}"]
            block, counts = block + 1, {"conv": 0, "norm": 0}
        elif kind is not None:
            counts[kind] += 1
            names[f"block{block}_{kind}{counts[kind]}"] = [f"features.{index}"]
    return names


def _layers(network: nn.Module, name: str, key: str) -> list[str]:
    """torch's names of the layers that one name of a recipe means, in torch's order."""
    keras = keras_names(network)
    if name in keras:
        return keras[name]
    known = [module for module, _ in network.named_modules() if module]
    # Some networks own parameters outside any layer (ViT's class_token).
    loose = [parameter for parameter, _ in network.named_parameters()]
    if name in known or name in loose:
        return [name]
    near = difflib.get_close_matches(name, [BASE, HEAD, *keras, *known], n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}" if near else f"its parts are {', '.join(_parts(network))}"
    raise RecipeError(f"{key} {name!r} is not a layer of this network; {hint}.")


def _parts(network: nn.Module) -> list[str]:
    return [BASE, HEAD, *(name for name, _ in network.named_children())]
