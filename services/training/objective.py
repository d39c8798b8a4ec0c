"""What a fit minimises and counts: cross-entropy over n classes, or over one sigmoid unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class SoftLabels:
    """Two labels an image, as mixup and CutMix give: int64 (batch,) each, and the share of the first, 0-1."""

    first: Tensor
    second: Tensor
    share: Tensor

    def without(self, first: int) -> SoftLabels:
        """Those of all images but the first so many."""
        return SoftLabels(self.first[first:], self.second[first:], self.share[first:]) if first else self

    @property
    def dominant(self) -> Tensor:
        return torch.where(self.share >= 0.5, self.first, self.second)


def loss_and_correct(
    logits: Tensor, labels: Tensor | SoftLabels, *, output: Literal["softmax", "sigmoid"], label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of a batch and how many of its images are right.

    Args:
        logits: float (batch, classes), or (batch, 1) for a sigmoid; taken to float32 first, whatever the precision.
        labels: int64 (batch,); of soft labels, the one with the larger share counts as right.
        output: What the logits are for.
        label_smoothing: Share of the target that is spread over all classes (softmax only).

    Returns:
        Two scalars on the logits' device: the loss in nats, and the count.
    """
    logits = logits.float()
    hard = labels.dominant if isinstance(labels, SoftLabels) else labels
    if output == "softmax":
        right = (logits.argmax(dim=1) == hard).sum()
        if isinstance(labels, SoftLabels):
            # Cross-entropy is linear in its target, so the mixture's loss is the mixture of the losses.
            first, second = (
                F.cross_entropy(logits, one, label_smoothing=label_smoothing, reduction="none")
                for one in (labels.first, labels.second)
            )
            return torch.lerp(second, first, labels.share).mean(), right
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing), right
    right = ((logits[:, 0] > 0) == hard.bool()).sum()
    target = labels.float() if isinstance(labels, Tensor) else _second_class(labels)
    return F.binary_cross_entropy_with_logits(logits[:, 0], target), right


def _second_class(labels: SoftLabels) -> Tensor:
    return torch.lerp(labels.second.float(), labels.first.float(), labels.share)
