"""The declarative convnet: blocks of convolutions, then a dense head.

It expresses every hand-made network of the source courses, to the parameter.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict

from torch import Tensor, nn

from contracts.errors import RecipeError
from contracts.images import ImageSpec
from contracts.recipe import Block, Convnet, Head
from services.training.networks.convolution import Conv2d
from services.training.networks.dropout import Dropout
from services.training.networks.pooling import MaxPool2d

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
}


def build(model: Convnet, *, image: ImageSpec, classes: int) -> nn.Sequential:
    """Build a convnet; see `services.training.networks.build`. Its layers are named `block1.conv1` … `head.dense1`."""
    channels: int = image.channels
    height, width = image.height, image.width
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number, block in enumerate(model.blocks, start=1):
        if block.residual and block.filters != channels:
            raise RecipeError(
                f"model.blocks.{number - 1}: a residual block of {block.filters} filters gets {channels} channels; "
                f"set its filters to {channels}, or put a block of {block.filters} filters before it."
            )
        parts[f"block{number}"] = _block(block, channels, model)
        height, width = _size(block, height), _size(block, width)
        if min(height, width) < 1:
            asked = f"an image of {image.height}x{image.width}"
            raise RecipeError(
                f"model.blocks.{number - 1}: {asked} is used up here ({height}x{width} remains); "
                "set padding to 'same', pool to 'none', or take larger images."
            )
        channels = block.filters
    parts["head"] = dense_head(model.head, channels, height * width, units_out(model.head.output, classes))
    network = nn.Sequential(parts)
    initialise(network, model.init)
    return network


def units_out(output: str, classes: int) -> int:
    """Units of the last layer: one for a sigmoid, else one a class."""
    if output == "softmax":
        return classes
    if classes != 2:
        raise RecipeError(f"one sigmoid unit tells two classes apart, the data has {classes}; set output to softmax.")
    return 1


class Residual(nn.Sequential):
    """Layers whose result is added to their input (He et al. 2016, with the identity as the shortcut)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - Sequential's name for it
        change: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return input + change


def _block(block: Block, channels: int, model: Convnet) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(1, block.repeat + 1):
        stride = block.stride if i == 1 else 1
        layers[f"conv{i}"] = Conv2d(
            channels, block.filters, block.kernel, stride, padding=_padding(block), bias=block.bias
        )
        activation = ACTIVATIONS[block.activation]()
        if block.norm == "none":
            layers[f"{block.activation}{i}"] = activation
        else:
            norm = nn.BatchNorm2d(block.filters, eps=model.norm_epsilon, momentum=model.norm_momentum)
            pair = [(f"norm{i}", norm), (f"{block.activation}{i}", activation)]
            layers.update(pair if block.norm_position == "before_activation" else reversed(pair))
        channels = block.filters
    if block.residual:
        layers = OrderedDict(residual=Residual(layers))
    if block.pool != "none":
        layers["pool"] = (MaxPool2d if block.pool == "max" else nn.AvgPool2d)(block.pool_size)
    if block.dropout:
        layers["dropout"] = Dropout(block.dropout)
    return Stage(layers)


class Stage(nn.Sequential):
    """The layers of a block. In training a ReLU right before max pooling is computed right after it instead.

    The maximum of ReLUs is the ReLU of the maximum, and so is its gradient, for a quarter of the values and less.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - Sequential's name for it
        layers = list(self)
        if self.training:
            for place, (layer, following) in enumerate(itertools.pairwise(layers)):
                if isinstance(layer, nn.ReLU) and isinstance(following, nn.MaxPool2d):
                    layers[place : place + 2] = [following, layer]
                    break  # a block has one pooling, and what follows it stays
        for layer in layers:
            input = layer(input)  # noqa: A001
        return input


def _padding(block: Block) -> int:
    # An even kernel has no symmetric "same" padding; kernel // 2 then grows the map by one, which _size counts.
    return block.kernel // 2 if block.padding == "same" else 0


def _size(block: Block, size: int) -> int:
    for i in range(block.repeat):
        size = (size + 2 * _padding(block) - block.kernel) // (block.stride if i == 0 else 1) + 1
    return size // block.pool_size if block.pool != "none" else size


def dense_head(head: Head, channels: int, positions: int, units: int) -> nn.Sequential:
    """Pooling, dense layers and the output, over a map (batch, channels, …) of so many positions; vectors have one."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    features = channels
    if head.pool == "flatten":
        features = channels * positions
    elif positions > 1:
        layers["pool"] = nn.AdaptiveAvgPool2d(1) if head.pool == "average" else nn.AdaptiveMaxPool2d(1)
    layers["flatten"] = nn.Flatten()
    for i, width in enumerate(head.units, start=1):
        layers[f"dense{i}"] = nn.Linear(features, width)
        layers[f"{head.activation}{i}"] = ACTIVATIONS[head.activation]()
        if head.dropout:
            layers[f"dropout{i}"] = Dropout(head.dropout)
        features = width
    layers["output"] = nn.Linear(features, units)
    return nn.Sequential(layers)


def initialise(network: nn.Module, init: str) -> None:
    """Draw the initial values of convolutions and dense layers; `torch` leaves those that torch has drawn."""
    if init == "torch":
        return
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if init == "glorot_uniform":  # Glorot and Bengio 2010; Keras' default, with zero biases
                nn.init.xavier_uniform_(module.weight)
            else:  # He et al. 2015
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
