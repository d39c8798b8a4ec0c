"""One step of a fit, as its plan computes it: launched kernel by kernel, compiled, or replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn

from contracts.errors import FitError
from contracts.recipe import Recipe
from services.training.device import Plan
from services.training.group import ALONE, Group
from services.training.low_weights import LowWeights
from services.training.networks import ServedGraph
from services.training.objective import SoftLabels, loss_and_correct

Truth = Tensor | SoftLabels
Step = Callable[[Tensor, Truth], tuple[Tensor, Tensor]]
Forward = Callable[[Tensor, Truth], tuple[Tensor, Tensor]]
_WARM: Final = 3
"""Steps before a CUDA graph is captured: libraries choose their kernels and the optimizer makes its state."""


def make_step(
    graph: ServedGraph,
    recipe: Recipe,
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    group: Group = ALONE,
) -> Step:
    """What takes one step on a batch; nothing in it waits for the device.

    Args:
        graph: In training mode, on the plan's device; its weights are changed in place.
        recipe: Loss, clipping and the batch size.
        plan: How a step is computed.
        optimizer: Over the graph's parameters, with the state that the fit begins with: a CUDA graph holds the places
            of its tensors.
        scaler: Enabled for fp16 alone.
        group: The workers that take the step together.

    Returns:
        A function of images, uint8 or float32 (batch, height, width, channels), 0-255, and labels, int64 (batch,) or
        soft ones; a worker's own of them. It gives the batch's mean loss and its number of right answers, scalars on
        the device, of all workers' images together.
    """
    # Compiled and captured steps have no calls to save
    low = LowWeights(graph.network, plan.dtype) if plan.device == "cpu" and plan.casts and not plan.compiled else None
    forward = plain = _forward(graph, recipe, plan, low)
    if plan.compiled:
        compiled = torch.compile(plain, dynamic=False)

        def forward(batch: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
            # The short last batch is not worth a compilation of its own
            return (compiled if len(batch) == recipe.fit.batch_size else plain)(batch, truth)

    def step(batch: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        return _step(forward, batch, truth, graph, recipe, optimizer, scaler, group, low)

    return Captured(step, optimizer, plan.device, recipe.fit.batch_size) if plan.cuda_graph else step


def training_step(
    graph: ServedGraph,
    batch: Tensor,
    truth: Truth,
    recipe: Recipe,
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> tuple[Tensor, Tensor]:
    """One step by itself, neither compiled nor captured; see `make_step`.

    Raises:
        FitError: BatchNorm has one value a channel to normalise with.
    """
    return _step(_forward(graph, recipe, plan), batch, truth, graph, recipe, optimizer, scaler)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, by its share of it; without waiting where a CUDA graph reads it."""
    for group in optimizer.param_groups:
        share = rate * group.get("lr_scale", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(share)
        else:
            group["lr"] = share


def _forward(graph: ServedGraph, recipe: Recipe, plan: Plan, low: LowWeights | None = None) -> Forward:
    smoothing = recipe.fit.label_smoothing
    weights = low.in_place if low is not None else nullcontext

    def forward(batch: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        with plan.autocast(), weights():
            pixels = graph.normalize(batch)
            if pixels.ndim == 4:  # features may be vectors
                pixels = pixels.contiguous(memory_format=plan.memory_format)
            logits = graph.network(pixels)
        return loss_and_correct(logits, truth, output=graph.output, label_smoothing=smoothing)

    return forward


def _step(
    forward: Forward,
    batch: Tensor,
    truth: Truth,
    graph: ServedGraph,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    group: Group = ALONE,
    low: LowWeights | None = None,
) -> tuple[Tensor, Tensor]:
    try:
        loss, right = forward(batch, truth)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(group.weighed(loss, len(batch))).backward()  # type: ignore[no-untyped-call]
        if low is not None:
            low.hand_over()
        loss, right = group.added(graph.network.parameters(), loss.detach(), right)
        if recipe.fit.clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(graph.network.parameters(), recipe.fit.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        if low is not None:
            low.refresh()
    except ValueError as error:
        if len(batch) > 1:
            raise
        raise FitError(
            f"recipe '{recipe.name}': a batch of one image cannot be fitted ({error}); "
            "set fit.batch_size to at least 2."
        ) from error
    return loss, right


class Captured:
    """A step that is captured once and replayed: one launch instead of hundreds, where small kernels wait for the host.

    The first steps on whole batches are taken one by one, on a stream beside, and count as steps; the one after them is
    captured. A batch of another size, such as the last of an epoch, is always taken one by one.
    """

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer, device: str, batch_size: int) -> None:
        """Make the optimizer's rate and counters tensors on the device, where a captured step finds them.

        Args:
            step: What is captured.
            optimizer: Whose step it takes.
            device: Where.
            batch_size: Of a whole batch; there is one graph, and most batches are whole.
        """
        self._step, self._batch_size = step, batch_size
        self._beside: Any = None
        """The stream of the steps before the capture; the memory that they leave is that stream's, so it is one."""
        self._taken = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._answers: tuple[Tensor, Tensor] | None = None
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
            if "capturable" in group:
                group["capturable"] = True
        for state in optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].to(device)
        # torch warns of a step that could be captured and is not; the first ones are not
        optimizer._warned_capturable_if_run_uncaptured = True  # noqa: SLF001

    def __call__(self, batch: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        if len(batch) != self._batch_size:
            return self._step(batch, truth)
        if self._taken < _WARM:
            self._taken += 1
            return self._warm(batch, truth)
        if self._graph is None:
            self._capture(batch, truth)
        inputs = _tensors(batch, truth)
        if self._graph is None or self._answers is None or not _alike(inputs, self._inputs):
            return self._step(batch, truth)
        for place, value in zip(self._inputs, inputs, strict=True):
            place.copy_(value, non_blocking=True)
        self._graph.replay()
        loss, right = self._answers
        return loss.clone(), right.clone()  # the next replay writes to the same places

    def _warm(self, batch: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        """A step on a stream of its own, as torch asks for before a capture."""
        self._beside = self._beside or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._beside):
            answers = self._step(batch, truth)
        torch.cuda.current_stream().wait_stream(self._beside)
        return answers

    def _capture(self, batch: Tensor, truth: Truth) -> None:
        kept = _copied(batch, truth)
        captured = torch.cuda.CUDAGraph()
        # Threads that read images ahead ask the driver for pinned memory meanwhile, and a checkpoint is copied
        with torch.cuda.graph(captured, capture_error_mode="thread_local"):
            self._answers = self._step(*kept)
        self._inputs, self._graph = _tensors(*kept), captured


def _tensors(batch: Tensor, truth: Truth) -> list[Tensor]:
    return [batch, truth] if isinstance(truth, Tensor) else [batch, truth.first, truth.second, truth.share]


def _copied(batch: Tensor, truth: Truth) -> tuple[Tensor, Truth]:
    if isinstance(truth, Tensor):
        return batch.clone(), truth.clone()
    return batch.clone(), SoftLabels(truth.first.clone(), truth.second.clone(), truth.share.clone())


def _alike(first: list[Tensor], second: list[Tensor]) -> bool:
    def kind(tensors: list[Tensor]) -> list[Any]:
        return [(tensor.shape, tensor.dtype) for tensor in tensors]

    return kind(first) == kind(second)
