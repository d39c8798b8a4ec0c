"""Any classification network of torchvision, its head fitted to the classes; its weights are loaded elsewhere."""

from __future__ import annotations

import difflib
import math
from typing import Any

import torch
from torch import nn

from contracts.errors import RecipeError
from contracts.images import ImageSpec
from contracts.recipe import Backbone, Head
from services.training.networks.convnet import dense_head, initialise, units_out
from services.training.networks.layers import freeze

_POOLS: dict[str, Any] = {
    "flatten": nn.Identity,
    "average": lambda: nn.AdaptiveAvgPool2d(1),
    "max": lambda: nn.AdaptiveMaxPool2d(1),
}


def build(model: Backbone, *, image: ImageSpec, classes: int) -> nn.Module:
    """Build a backbone; see `services.training.networks.build`.

    A linear head replaces the last layer by one with the units that the classes need; dense layers replace the whole
    classifier and the pooling before it. For a grayscale image the first convolution is replaced by one whose filter
    is the sum of the old one over the colours.

    Raises:
        RecipeError: the name is not one of torchvision's classification networks, it takes no images of this size, a
            layer to hold is not known, or the head's pooling is not to be had.
    """
    from torchvision import models  # seconds to import, and a convnet needs none of it

    known = models.list_models(module=models)
    if model.name not in known:
        near = difflib.get_close_matches(model.name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "see torchvision.models.list_models()."
        raise RecipeError(f"model.name {model.name!r} is not a classification network of torchvision; {hint}")
    # These two have a second, auxiliary output in training by default, which has no use here.
    two_outputs = model.name in ("googlenet", "inception_v3")
    options = {"aux_logits": False, "init_weights": False} if two_outputs else {}
    network: nn.Module = models.get_model(model.name, weights=None, **options)
    if image.channels == 1:
        first_name, first = _layers(network, nn.Conv2d)[0]
        _set(network, first_name, _grayscale(first))
    last_name, last = _layers(network, nn.Linear, nn.Conv2d)[-1]
    units = units_out(model.output_activation, classes)
    if isinstance(model.head, Head):
        _replace_classifier(network, last_name.partition(".")[0], model, model.head, image, units)
    else:
        _set(network, last_name, _resized(last, units))
        initialise(network.get_submodule(last_name), model.init)
        _check_size(network, model, image)
    freeze(network, frozen=model.frozen, trainable_from=model.trainable_from)
    return network


def _replace_classifier(
    network: nn.Module, part: str, model: Backbone, head: Head, image: ImageSpec, units: int
) -> None:
    """Put dense layers in the place of `part`, on what the base gives for this image, pooled as the head says."""
    setattr(network, part, nn.Identity())
    if isinstance(getattr(network, "avgpool", None), nn.AdaptiveAvgPool2d):
        # torchvision flattens after it, so the head would see no map; VGG's also blows 1x1 up to 7x7.
        network.avgpool = _POOLS[head.pool]()
        head = head.model_copy(update={"pool": "flatten"})
        _, channels, *sides = _features(network, part, model, image)
    else:
        _, channels, *sides = _features(network, part, model, image)
        if not sides and head.pool != "average":
            raise RecipeError(
                f"model.head.pool is {head.pool!r}, but {model.name} gives its head a vector, pooled in its own way; "
                "set it to 'average'."
            )
    dense = dense_head(head, channels, math.prod(sides), units)
    initialise(dense, model.init)
    setattr(network, part, dense)


def _features(network: nn.Module, part: str, model: Backbone, image: ImageSpec) -> torch.Size:
    """The shape of what reaches `part`: (batch, channels), or (batch, channels, height, width)."""
    shapes: list[torch.Size] = []
    hook = network.get_submodule(part).register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    _check_size(network, model, image)
    hook.remove()
    return shapes[0]


def _check_size(network: nn.Module, model: Backbone, image: ImageSpec) -> None:
    """Send shapes alone through the network: some take one size only, and most use a small image up on the way."""
    meta = {name: value.to("meta") for name, value in [*network.named_parameters(), *network.named_buffers()]}
    pixels = torch.empty((2, image.channels, image.height, image.width), device="meta")
    network.eval()  # dropout and BatchNorm would ask for random numbers and for more than one value
    try:
        with torch.no_grad():
            torch.func.functional_call(network, meta, (pixels,))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".!")
        raise RecipeError(
            f"model.name {model.name!r} takes no images of {image.height}x{image.width} ({reason}); "
            "set data.image.height and data.image.width to 224, or take another network."
        ) from error
    network.train()


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
