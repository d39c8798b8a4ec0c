"""One door to every network: the recipe's `model` part -> a torch module that takes float NCHW and gives logits."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from contracts.images import ImageSpec
from contracts.recipe import Backbone, Convnet
from services.training.networks import backbone, convnet


class Counts(NamedTuple):
    """Numbers of parameters. `total` counts BatchNorm's running statistics, as Keras' summary does."""

    total: int
    trainable: int


def build(model: Convnet | Backbone, *, image: ImageSpec, classes: int) -> nn.Module:
    """Build the network of a recipe, initialised from torch's global generator; `services.training.weights` loads it.

    Args:
        model: The recipe's description.
        image: What one image is.
        classes: Number of classes; a sigmoid output needs exactly two and has one unit.

    Returns:
        A module: float (batch, channels, height, width) -> logits float (batch, classes), or (batch, 1) for a sigmoid.

    Raises:
        RecipeError: the image is too small for the blocks, the backbone or a layer to hold is not known, or a sigmoid
            has not two classes.
    """
    if isinstance(model, Backbone):
        return backbone.build(model, image=image, classes=classes)
    return convnet.build(model, image=image, classes=classes)


def count_parameters(network: nn.Module) -> Counts:
    """Count the parameters of a network, on any device (the meta device costs nothing)."""
    parameters = sum(p.numel() for p in network.parameters())
    statistics = sum(b.numel() for b in network.buffers() if b.is_floating_point())
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Counts(total=parameters + statistics, trainable=trainable)
