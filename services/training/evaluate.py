"""Evaluation of a network on a split, without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.training.group import ALONE, Group
from services.training.networks import ServedGraph
from services.training.objective import loss_and_correct

if TYPE_CHECKING:
    from services.training.loader import Source

_MOST: Final = {"cpu": 64, "cuda": 512}
_VALUES: Final = 96 * 96 * 3


def batch_size(shape: Sequence[int], device: str | torch.device) -> int:
    """How many images of (height, width, channels) are evaluated at once: 64, on a GPU 512, and fewer large ones.

    The first layers of a network for 224x224 hold 13 MB an image in fp32; 512 of them would take 6.6 GB. On the CPU 64
    images took as long an image as 128 (Fashion) or 6% longer (MNIST), and half the memory.
    """
    most = _MOST.get(torch.device(device).type, 512)
    return max(1, min(most, most * _VALUES // math.prod(shape)))


def to_device(array: NDArray[Any], device: str | torch.device) -> Tensor:
    """A tensor of an array's values on a device; on the CPU it shares the array's memory where that is writable."""
    # torch cannot promise not to write, so it warns of a read-only array (a memory-mapped cache); that is copied
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


@torch.no_grad()
def evaluate(
    graph: ServedGraph,
    source: Source,
    *,
    precision: AbstractContextManager[object] | None = None,
    group: Group = ALONE,
) -> tuple[float, float]:
    """Loss (nats, mean) and accuracy (0-1) of a network on all images of a source on its device.

    The network is left in the mode that it was in. The workers of a group take a part of the images each.
    """
    was_training = graph.training
    graph.eval()
    totals = torch.zeros(2, device=source.device)  # loss and right answers, read once
    size = batch_size(source.image, source.device)
    begin, end = group.share(0, len(source))
    spans = [(start, min(start + size, end)) for start in range(begin, end, size)]
    for batch, truth in source.rows(spans):
        with precision or nullcontext():
            logits = graph.network(graph.normalize(batch))
        loss, correct = loss_and_correct(logits, truth, output=graph.output)
        totals += torch.stack((loss * len(truth), correct))
    graph.train(was_training)
    loss_sum, right = group.total(totals).tolist()
    return loss_sum / len(source), right / len(source)


@torch.no_grad()
def predict(graph: ServedGraph, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Probabilities float32 (n, classes) of images uint8 (n, h, w, c), in fp32, in eval mode, on the graph's device."""
    was_training = graph.training
    graph.eval()
    answers = in_batches(graph, images, graph.mean.device)
    graph.train(was_training)
    return answers


@torch.no_grad()
def in_batches(
    function: Callable[[Tensor], Tensor], images: NDArray[np.uint8], device: str | torch.device
) -> NDArray[np.float32]:
    """A function of uint8 (batch, h, w, c) of all images, of which it sees as many at once as `batch_size` says; on the
    CPU half as many, since it computes in fp32, which takes twice the memory of bf16.

    Its answers are written to one array. Were each kept as it is, it would lie between the memory of two batches, which
    then never joins again: judging 10,000 images of Fashion-MNIST by 64 took 97 to 157 MiB so, and takes 47 to 62; by
    32, 19 to 31 in the same time.

    Args:
        function: Its answers are float (batch, units).
        images: (n, h, w, c).
        device: What the function works on.

    Returns:
        (n, units); (0, 0) without images.
    """
    size = batch_size(images.shape[1:], device)
    size = max(1, size // 2) if torch.device(device).type == "cpu" else size
    answers = torch.empty(len(images), 0)
    for start in range(0, len(images), size):
        rows = function(to_device(images[start : start + size], device))
        if start == 0:
            answers = torch.empty(len(images), *rows.shape[1:])
        answers[start : start + len(rows)] = rows
        del rows
    return answers.numpy()
