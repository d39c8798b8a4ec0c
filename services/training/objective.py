"""What a fit minimises and counts: cross-entropy over n classes, or over one sigmoid unit."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


def loss_and_correct(
    logits: Tensor, labels: Tensor, *, output: Literal["softmax", "sigmoid"], label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The mean cross-entropy of a batch and how many of its images are right.

    Args:
        logits: float (batch, classes), or (batch, 1) for a sigmoid; taken to float32 first, whatever the precision.
        labels: int64 (batch,).
        output: What the logits are for.
        label_smoothing: Share of the target that is spread over all classes (softmax only).

    Returns:
        Two scalars on the logits' device: the loss in nats, and the count.
    """
    logits = logits.float()
    if output == "softmax":
        loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return loss, (logits.argmax(dim=1) == labels).sum()
    loss = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
    return loss, ((logits[:, 0] > 0) == labels.bool()).sum()
