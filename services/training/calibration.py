"""The temperature: one number, fitted on the validation split, that makes the probabilities honest.

Guo et al. 2017, "On Calibration of Modern Neural Networks": the logits are divided by the temperature that gives the
validation split the lowest cross-entropy. The order of the classes stays, so accuracy does; it is a part of the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.errors import FitError
from services.training.data.dataset import Split
from services.training.evaluate import in_batches
from services.training.networks import ServedGraph

BOUNDS: Final = (0.1, 10.0)
"""Of the temperature. It also bounds how much the division can enlarge a rounding error of the logits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """A fitted temperature, and what it did to the cross-entropy (nats, mean) of the images it was fitted on."""

    temperature: float
    loss_before: float
    loss_after: float
    images: int

    def __str__(self) -> str:
        change = f"cross-entropy {self.loss_before:.4f} -> {self.loss_after:.4f}"
        return f"{self.temperature:.3f}, fitted on {self.images:,} validation images ({change})"


def calibrate(graph: ServedGraph, split: Split) -> Calibration:
    """Fit the temperature of a graph on a split and set it; the graph is left on its device and in its mode.

    Raises:
        FitError: the network's answers are not finite.
    """
    logits = logits_of(graph, split.images)
    temperature = fit_temperature(logits, split.labels)
    graph.temperature.fill_(temperature)
    return Calibration(
        temperature=float(graph.temperature),
        loss_before=_cross_entropy(_columns(logits), split.labels, 1.0),
        loss_after=_cross_entropy(_columns(logits), split.labels, float(graph.temperature)),
        images=len(split.labels),
    )


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature within `BOUNDS` that gives the lowest cross-entropy.

    Args:
        logits: (n, classes), or (n, 1) of one sigmoid unit.
        labels: (n,).

    Raises:
        FitError: logits that are not finite.
    """
    from scipy.optimize import minimize_scalar

    if not np.isfinite(logits).all():
        raise FitError(
            "the network's answers on the validation split are not finite, logits were expected; lower optimizer.lr "
            "or use fit.precision fp32."
        )
    columns = _columns(logits)
    # Without one mistake every sharper answer is a better one, down to any bound: there is nothing to learn from.
    low = 1.0 if (columns.argmax(axis=1) == labels).all() else BOUNDS[0]
    # The cross-entropy is convex in 1/T, so on a logarithmic scale there is one minimum to be found.
    found = minimize_scalar(  # type: ignore[no-untyped-call]
        lambda exponent: _cross_entropy(columns, labels, float(np.exp(exponent))),
        bounds=(np.log(low), np.log(BOUNDS[1])),
        method="bounded",
        options={"xatol": 1e-4},
    )
    best = float(np.exp(found.x))
    # The search never tries its ends, and 1 is the end where there is no mistake.
    return best if _cross_entropy(columns, labels, best) < _cross_entropy(columns, labels, 1.0) else 1.0


def predict_both(graph: ServedGraph, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Probabilities float32 (n, classes) of images at the graph's temperature, and those at temperature 1."""
    logits = torch.from_numpy(logits_of(graph, images)).to(graph.temperature.device)
    return graph.probabilities(logits).cpu().numpy(), graph.probabilities(logits * graph.temperature).cpu().numpy()


@torch.no_grad()
def logits_of(graph: ServedGraph, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Logits float32 (n, units) of images uint8 (n, h, w, c), in fp32, in eval mode, on the graph's device."""
    modes = [(module, module.training) for module in graph.modules()]
    graph.eval()
    answers = in_batches(lambda batch: graph.network(graph.normalize(batch)), images, graph.mean.device)
    for module, training in modes:  # one by one: frozen layers may be in eval mode while the others train
        module.training = training
    return answers


def _columns(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """One sigmoid unit z as the two logits (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z))."""
    wide = logits.astype(np.float64)
    return np.concatenate((np.zeros_like(wide), wide), axis=1) if wide.shape[1] == 1 else wide


def _cross_entropy(logits: NDArray[np.float64], labels: NDArray[np.int64], temperature: float) -> float:
    from scipy.special import logsumexp

    scaled = logits / temperature
    return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(labels)), labels]))
