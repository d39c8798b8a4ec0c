"""Any classification network of torchvision, its output fitted to the classes."""

from __future__ import annotations

import difflib
from typing import Any
from urllib.error import URLError

from torch import nn
from torchvision import models

from contracts.errors import DataError, RecipeError
from contracts.images import ImageSpec
from contracts.recipe import Backbone
from services.training.networks.convnet import units_out


def build(model: Backbone, *, image: ImageSpec, classes: int) -> nn.Module:
    """Build a backbone; see `services.training.networks.build`.

    The last layer is replaced by a new one with the units that the classes need. For a grayscale image the first
    convolution is replaced by one whose filter is the sum of the old one over the colours.

    Raises:
        RecipeError: the name is not one of torchvision's classification networks.
        DataError: the ImageNet weights are not cached and cannot be downloaded.
    """
    known = models.list_models(module=models)  # type: ignore[attr-defined]
    if model.name not in known:
        near = difflib.get_close_matches(model.name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see torchvision.models.list_models()."
        raise RecipeError(f"model.name {model.name!r} is not a classification network of torchvision; {hint}")
    network = _backbone(model)
    last_name, last = _layers(network, nn.Linear, nn.Conv2d)[-1]
    _set(network, last_name, _resized(last, units_out(model.output, classes)))
    if image.channels == 1:
        first_name, first = _layers(network, nn.Conv2d)[0]
        _set(network, first_name, _grayscale(first))
    return network


def _backbone(model: Backbone) -> nn.Module:
    # These two have a second, auxiliary output in training by default, which has no use here.
    two_outputs = model.name in ("googlenet", "inception_v3")
    options: dict[str, Any] = {}
    if two_outputs and model.weights == "none":
        options = {"aux_logits": False, "init_weights": False}
    try:
        weights = "DEFAULT" if model.weights == "imagenet" else None
        network: nn.Module = models.get_model(  # type: ignore[attr-defined]
            model.name, weights=weights, **options
        )
    except URLError as error:
        raise DataError(
            f"model.weights 'imagenet' of {model.name}: not in torch's cache, and not to be downloaded "
            f"({error.reason}); run once with a network, or set model.weights to none."
        ) from error
    if two_outputs:
        network.aux_logits = False  # type: ignore[assignment]
    return network


def _layers(network: nn.Module, *kinds: type[nn.Module]) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, kinds)]


def _set(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, layer)


def _resized(last: nn.Linear | nn.Conv2d, units: int) -> nn.Module:
    if isinstance(last, nn.Linear):
        return nn.Linear(last.in_features, units)
    return nn.Conv2d(last.in_channels, units, kernel_size=1)  # SqueezeNet's classifier is a 1x1 convolution


def _grayscale(first: nn.Conv2d) -> nn.Conv2d:
    new: Any = nn.Conv2d(1, first.out_channels, kernel_size=1, bias=first.bias is not None)
    for name in ("kernel_size", "stride", "padding", "dilation"):
        setattr(new, name, getattr(first, name))
    # The sum over the colours answers a gray image as the old filter answers the same image in RGB.
    new.weight = nn.Parameter(first.weight.data.sum(1, keepdim=True))
    new.bias = first.bias
    return new  # type: ignore[no-any-return]
