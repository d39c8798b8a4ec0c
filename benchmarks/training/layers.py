"""A recipe's convnet as a plain list of layers, from which the peers build the same network in their own terms.

Standard library only. What a peer could not express is refused, so that nothing is compared that is not the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer; what does not concern its kind is 0."""

    kind: str
    """conv, relu, norm, max_pool, dropout, flatten or dense."""
    inputs: int = 0
    """Channels, or features."""
    outputs: int = 0
    size: int = 0
    """Side of the kernel, or of the pooling window."""
    same: bool = False
    """Whether a convolution keeps its input's size; else it takes what fits."""
    rate: float = 0.0
    """Of dropout."""
    momentum: float = 0.0
    """The share of the new batch in the running statistics: torch's momentum, one minus Keras'."""
    epsilon: float = 0.0

    @property
    def parameters(self) -> int:
        """Trained or not: a normalisation has two of each a channel."""
        return {
            "conv": self.inputs * self.outputs * self.size**2 + self.outputs,
            "dense": self.inputs * self.outputs + self.outputs,
            "norm": 4 * self.outputs,
        }.get(self.kind, 0)


def layers(model: dict[str, Any], image: dict[str, Any], classes: int) -> list[Layer]:
    """The layers of a recipe's network, in order.

    Args:
        model: `recipe.model` as JSON.
        image: `recipe.data.image` as JSON.
        classes: Units of the output.

    Raises:
        ValueError: the network has something that is not expressed here.
    """
    _expect("model.kind", model["kind"], "convnet")
    _expect("model.init", model["init"], "glorot_uniform")
    channels, height, width = image["channels"], image["height"], image["width"]
    found: list[Layer] = []
    for block in model["blocks"]:
        found += _block(block, channels, model)
        channels = block["filters"]
        for _ in range(block["repeat"]):
            lost = 0 if block["padding"] == "same" else block["kernel"] - 1
            height, width = height - lost, width - lost
        if block["pool"] == "max":
            height, width = height // block["pool_size"], width // block["pool_size"]
    return [*found, *_head(model["head"], channels * height * width, classes)]


def _block(block: dict[str, Any], channels: int, model: dict[str, Any]) -> Iterator[Layer]:
    for key, value in {"stride": 1, "residual": False, "activation": "relu", "bias": True}.items():
        _expect(f"block.{key}", block[key], value)
    for _ in range(block["repeat"]):
        size, filters = block["kernel"], block["filters"]
        yield Layer("conv", inputs=channels, outputs=filters, size=size, same=block["padding"] == "same")
        norm = Layer("norm", outputs=filters, momentum=model["norm_momentum"], epsilon=model["norm_epsilon"])
        before, after = (block["norm_position"] == side for side in ("before_activation", "after_activation"))
        if block["norm"] == "batch" and before:
            yield norm
        yield Layer("relu")
        if block["norm"] == "batch" and after:
            yield norm
        channels = filters
    if block["pool"] != "none":
        _expect("block.pool", block["pool"], "max")
        yield Layer("max_pool", size=block["pool_size"])
    if block["dropout"]:
        yield Layer("dropout", rate=block["dropout"])


def _head(head: dict[str, Any], features: int, classes: int) -> Iterator[Layer]:
    for key, value in {"pool": "flatten", "activation": "relu", "output": "softmax"}.items():
        _expect(f"head.{key}", head[key], value)
    yield Layer("flatten")
    for units in head["units"]:
        yield Layer("dense", inputs=features, outputs=units)
        yield Layer("relu")
        if head["dropout"]:
            yield Layer("dropout", rate=head["dropout"])
        features = units
    yield Layer("dense", inputs=features, outputs=classes)


def _expect(key: str, value: object, expected: object) -> None:
    if value != expected:
        raise ValueError(f"{key} is {value!r}; this benchmark builds the peers' networks for {expected!r} only.")
