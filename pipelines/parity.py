"""The proof that a graph in onnxruntime gives what its network gives in torch, on the test images themselves.

Torch (fp32, CPU) answers the whole split once. onnxruntime (CPU) answers it at every batch size of the recipe; of a
split of more than `SMALL_SPLIT` images the largest batch size takes all and the others take an even sample, to bound
the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contracts.errors import ExportError
from pipelines import graph

if TYPE_CHECKING:
    import torch
    from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

SMALL_SPLIT: Final = 2000
"""A split of up to this many images is compared whole at every batch size."""
SAMPLE: Final = 512
"""How many images of a larger split the smaller batch sizes take, at least."""
TORCH_BATCH: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """What the comparison saw; made by `compare` only where it holds."""

    images: int
    """The test images, all of them compared at the largest batch size."""
    batch_sizes: tuple[int, ...]
    compared: tuple[int, ...]
    """How many images each batch size took."""
    tolerance: float
    largest_difference: float
    """Of one probability, over all images, classes and batch sizes."""
    argmax_differences: int
    """Images with another best class although the two best differ by more than the tolerance; 0 where parity holds."""
    near_ties: int
    """Images with another best class whose two best differ by less than the tolerance."""
    accuracy_torch: float
    accuracy_onnx: float
    loss_onnx: float
    """Mean negative log probability of the right class."""

    def figures(self) -> dict[str, float]:
        """The numbers alone, for a manifest or a metric."""
        lists = ("batch_sizes", "compared")
        return {key: float(value) for key, value in asdict(self).items() if key not in lists}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    network: torch.nn.Module,
    session: InferenceSession,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    tolerance: float,
    batch_sizes: Sequence[int],
) -> tuple[Parity, NDArray[np.float32]]:
    """Compare the two on images (n, height, width, channels) with class indices (n,).

    Returns:
        what was seen, and onnxruntime's probabilities (n, classes) of all images at the largest batch size.

    Raises:
        ExportError: a probability differs by more than the tolerance, a clear best class differs, or an answer has
            another shape or is not finite.
    """
    if len(images) == 0:
        raise ExportError("parity: the test split is empty; it takes at least one image to prove a graph.")
    expected = torch_probabilities(network, images)
    _finite(expected, "torch")
    whole = max(batch_sizes)
    answers = graph.predict(session, images, batch_size=whole)
    largest, differing, ties = _differences(expected, answers, tolerance=tolerance, batch_size=whole)
    sizes = tuple(sorted(set(batch_sizes)))
    compared = []
    for size in sizes:
        chosen = sample(len(images), size) if size < whole else np.arange(len(images))
        compared.append(len(chosen))
        if size < whole:
            found = graph.predict(session, images[chosen], batch_size=size)
            seen = _differences(expected[chosen], found, tolerance=tolerance, batch_size=size)
            largest, differing, ties = max(largest, seen[0]), differing + seen[1], ties + seen[2]
    parity = Parity(
        images=len(images),
        batch_sizes=sizes,
        compared=tuple(compared),
        tolerance=tolerance,
        largest_difference=largest,
        argmax_differences=differing,
        near_ties=ties,
        accuracy_torch=accuracy(expected, labels),
        accuracy_onnx=accuracy(answers, labels),
        loss_onnx=loss(answers, labels),
    )
    if largest > tolerance or differing:
        raise ExportError(
            f"parity: torch and onnxruntime differ by up to {largest:.3g} (tolerance {tolerance:.3g}) and name another "
            f"class for {differing} of {len(images)} test images; the graph is not the network, so it is not exported."
        )
    return parity, answers


def sample(count: int, batch_size: int) -> NDArray[np.intp]:
    """The indices that a smaller batch size takes: all of a small split, else an even sample of several batches."""
    wanted = count if count <= SMALL_SPLIT else min(count, max(SAMPLE, 2 * batch_size + 1))
    return np.linspace(0, count - 1, wanted).round().astype(np.intp)


def torch_probabilities(network: torch.nn.Module, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the network gives in torch, fp32 on the CPU: (n, classes)."""
    import torch

    network = network.eval().to("cpu", torch.float32)
    answers = []
    with torch.inference_mode():
        for start in range(0, len(images), TORCH_BATCH):
            # A data set may be a read-only map of a file, which torch does not take without a warning.
            batch = torch.from_numpy(np.array(images[start : start + TORCH_BATCH]))
            answers.append(network(batch).numpy())
    return np.concatenate(answers)


def accuracy(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


def majority_baseline(labels: NDArray[np.int64]) -> float:
    """The accuracy of always naming the most common of the labels (n,), n >= 1."""
    return float(np.bincount(labels).max() / len(labels))


def loss(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    right = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    # A float32 probability can underflow to 0, where the loss of the logits would still have been finite.
    return float(-np.log(np.maximum(right, np.finfo(np.float32).tiny)).mean())


def macro_f1(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The mean over the classes of 2 tp / (2 tp + fp + fn); a class that neither side names counts as 0."""
    chosen = probabilities.argmax(axis=1)
    scores = []
    for index in range(probabilities.shape[1]):
        hits = int(((chosen == index) & (labels == index)).sum())
        named = int((chosen == index).sum() + (labels == index).sum())
        scores.append(2 * hits / named if named else 0.0)
    return float(np.mean(scores))


def _differences(
    expected: NDArray[np.float32], found: NDArray[np.float32], *, tolerance: float, batch_size: int
) -> tuple[float, int, int]:
    """(largest difference, other classes beyond the tolerance, other classes within it)."""
    if found.shape != expected.shape:
        raise ExportError(
            f"parity: at batch size {batch_size} onnxruntime answers {found.shape}, torch answers {expected.shape}; "
            "the graph is not the network, so it is not exported."
        )
    _finite(found, f"onnxruntime at batch size {batch_size}")
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > tolerance
    other = expected.argmax(axis=1) != found.argmax(axis=1)
    return float(np.abs(expected - found).max()), int((other & clear).sum()), int((other & ~clear).sum())


def _finite(probabilities: NDArray[np.float32], who: str) -> None:
    if probabilities.dtype != np.float32:
        raise ExportError(f"parity: {who} answers {probabilities.dtype}, expected float32.")
    if bad := int((~np.isfinite(probabilities).all(axis=1)).sum()):
        raise ExportError(f"parity: {who} gives no finite probabilities for {bad} of {len(probabilities)} test images.")
