"""What is exported and evaluated: the network with its normalisation before it and its probabilities after it."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from services.training.networks.layers import hold_statistics


class ServedGraph(nn.Module):
    """uint8 images in, probabilities out; normalisation and output are inside, so no server can get them wrong."""

    mean: Tensor
    scale: Tensor
    temperature: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        output: Literal["softmax", "sigmoid"],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        temperature: float = 1.0,
    ) -> None:
        """Wrap a network.

        Args:
            network: float (batch, channels, height, width) -> logits (batch, classes), or (batch, 1) for a sigmoid.
            output: What makes probabilities of the logits.
            mean: Per channel, on the scale 0-1.
            std: Likewise.
            temperature: Divides the logits; above 1 the answers are less sure, the most probable class is the same.
        """
        super().__init__()
        self.network = network
        self.output = output
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1) * 255)
        self.register_buffer("scale", 1 / (255 * torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)))
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def train(self, mode: bool = True) -> Self:
        """Set the mode; held BatchNorm stays as in evaluation, whoever sets it."""
        super().train(mode)
        hold_statistics(self.network)
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (batch, height, width, channels) -> float32 (batch, channels, height, width), a channels_last view."""
        return (images.permute(0, 3, 1, 2).float() - self.mean) * self.scale

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (batch, height, width, channels) -> probabilities float32 (batch, classes); the rows sum to one."""
        return self.probabilities(self.network(self.normalize(images)))

    def probabilities(self, logits: Tensor) -> Tensor:
        """The network's logits -> probabilities float32 (batch, classes), at the temperature."""
        logits = logits.float() / self.temperature
        if self.output == "softmax":
            return logits.softmax(dim=1)
        second: Tensor = logits.sigmoid()
        return torch.cat((1 - second, second), dim=1)
