"""The fit: one loop, top to bottom, over images that live on the device as uint8."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from contracts.errors import FitError
from contracts.recipe import Recipe
from services.training.averaging import Average
from services.training.batches import drawn
from services.training.data.dataset import Split
from services.training.device import Plan
from services.training.evaluate import evaluate, to_device
from services.training.networks import ServedGraph
from services.training.objective import SoftLabels, loss_and_correct
from services.training.optimizers import make_optimizer
from services.training.progress import Progress
from services.training.schedules import LearningRate, Patience


class EpochLog(Protocol):
    """Whoever keeps the metrics of an epoch."""

    def epoch(self, step: int, metrics: dict[str, float]) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """What a fit came to; the graph holds the weights that were kept."""

    history: list[dict[str, float]]
    """The metrics of each epoch; validation is of the averaged weights where `fit.ema` asks for them."""
    best_epoch: int
    """Counted from 1; the epoch whose weights were kept, where `fit.restore_best` says so."""
    best: dict[str, float]
    """The metrics of that epoch."""
    seconds: float
    """Of the whole fit, validation included."""
    images_per_second: float
    """Training images over the time of the training steps alone."""
    stopped: str
    """Why the fit ended."""


def _no_one(_: int, __: ServedGraph) -> None:
    """Watches nothing."""


def fit(  # noqa: PLR0915 - the loop is read top to bottom, so it is one function
    graph: ServedGraph,
    train: Split,
    validation: Split,
    recipe: Recipe,
    plan: Plan,
    *,
    log: EpochLog,
    progress: Progress,
    watch: Callable[[int, ServedGraph], None] = _no_one,
) -> FitResult:
    """Fit a network to a recipe.

    Args:
        graph: The network, in any mode; it is moved to the plan's device and changed in place.
        train: uint8 (n, h, w, c) and int64 (n,).
        validation: Likewise; measured after every epoch.
        recipe: Optimizer, schedule, augmentation, early stopping and the rest.
        plan: Device, precision and memory format.
        log: Gets the metrics of every epoch.
        progress: Shows where the fit is.
        watch: Called with the epoch and the graph that was evaluated, after each epoch is logged; it must leave the
            graph as it is.

    Raises:
        FitError: the loss is not finite any more, or the device is out of memory.
    """
    config, device = recipe.fit, torch.device(plan.device)
    # NHWC on the device: the permuted view that the network takes is channels_last without a copy
    images, labels = to_device(train.images, device), to_device(train.labels, device)
    held_out = to_device(validation.images, device), to_device(validation.labels, device)
    graph.to(device).to(memory_format=plan.memory_format)
    average = Average(graph, config.ema) if config.ema is not None else None
    judged = average.graph if average else graph  # whose weights are evaluated and kept
    n = len(labels)
    batches = batch_bounds(n, config.batch_size)

    order = torch.Generator().manual_seed(config.seed)  # on the CPU, so that the order is the same on every device
    randomness = torch.Generator(device=device).manual_seed(config.seed + 1)
    optimizer = make_optimizer(recipe.optimizer, graph.network)
    learning_rate = LearningRate(recipe.schedule, recipe.optimizer.lr, len(batches) * config.epochs)
    scaler = torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16")
    monitor = config.early_stopping.monitor if config.early_stopping else "validation/accuracy"
    patience = Patience(
        patience=config.early_stopping.patience if config.early_stopping else config.epochs,
        higher_is_better=monitor.endswith("accuracy"),
        min_delta=config.early_stopping.min_delta if config.early_stopping else 0.0,
    )

    history: list[dict[str, float]] = []
    best_epoch, best_state, step, training_seconds = 0, None, 0, 0.0
    stopped = f"all {config.epochs} epochs are done"
    started = time.perf_counter()
    progress.start(epochs=config.epochs, images=n)
    for epoch in range(1, config.epochs + 1):
        graph.train()
        permutation = torch.randperm(n, generator=order).to(device)
        totals = torch.zeros(2, device=device)  # loss and right answers, read only where the host must know them
        epoch_started = time.perf_counter()
        augmented = drawn(images, labels, permutation, batches, recipe.augmentation, randomness)
        for (_, stop), (batch, truth) in zip(batches, augmented, strict=True):
            rate = learning_rate.at(step)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            loss, right = training_step(graph, batch, truth, recipe, plan, optimizer, scaler)
            if average is not None:
                average.update()
            totals += torch.stack((loss * len(batch), right))
            step += 1
            if progress.due():  # a few times a second: the only place inside an epoch where the device is waited for
                _finite(totals, "loss", epoch, rate, recipe)
                progress.step(epoch, stop, totals.tolist())
        _finite(totals, "loss", epoch, rate, recipe)
        loss_sum, right_sum = totals.tolist()
        epoch_seconds = time.perf_counter() - epoch_started
        training_seconds += epoch_seconds

        validation_loss, validation_accuracy = evaluate(judged, *held_out, precision=plan.autocast())
        _finite([validation_loss], "validation loss", epoch, rate, recipe)  # NaN would stay the best value for ever
        metrics = {
            "train/loss": loss_sum / n,
            "train/accuracy": right_sum / n,
            "validation/loss": validation_loss,
            "validation/accuracy": validation_accuracy,
            "lr": rate,
            "images_per_second": n / epoch_seconds,
            "epoch_seconds": epoch_seconds,
        }
        history.append(metrics)
        log.epoch(epoch, metrics)
        progress.epoch(epoch, metrics)
        watch(epoch, judged)

        if patience.better(metrics[monitor]):
            best_epoch = epoch
            if config.restore_best:
                best_state = {name: value.clone() for name, value in judged.state_dict().items()}
        learning_rate.after_epoch(metrics)
        if config.early_stopping and patience.exhausted:
            stopped = f"{monitor} was not better for {patience.patience} epochs in a row"
            break
    progress.close()
    if config.restore_best and best_state is not None:
        graph.load_state_dict(best_state)
    else:
        graph.load_state_dict(judged.state_dict())
        best_epoch = len(history)
    graph.eval()
    return FitResult(
        history=history,
        best_epoch=best_epoch,
        best=history[best_epoch - 1],
        seconds=time.perf_counter() - started,
        images_per_second=n * len(history) / training_seconds,
        stopped=stopped,
    )


def batch_bounds(images: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of every batch of an epoch; the last one may be short, or one image longer than `size`.

    An image that would be left alone joins the batch before it: BatchNorm over a 1x1 feature map has nothing to
    normalise with in a batch of one.
    """
    starts = list(range(0, images, size))
    if size > 1 and images % size == 1 and len(starts) > 1:
        starts.pop()
    return list(itertools.pairwise([*starts, images]))


def training_step(
    graph: ServedGraph,
    batch: Tensor,
    truth: Tensor | SoftLabels,
    recipe: Recipe,
    plan: Plan,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> tuple[Tensor, Tensor]:
    """One step: forward, backward, clip, update. Nothing in it waits for the device.

    Args:
        graph: In training mode, on the plan's device.
        batch: uint8 or float32 (batch, height, width, channels), 0-255.
        truth: int64 (batch,), or soft labels.

    Returns:
        The batch's mean loss and its number of right answers, scalars on the device.

    Raises:
        FitError: the device is out of memory, or BatchNorm has one value a channel to normalise with.
    """
    try:
        with plan.autocast():
            pixels = graph.normalize(batch).contiguous(memory_format=plan.memory_format)
            logits = graph.network(pixels)
        loss, right = loss_and_correct(logits, truth, output=graph.output, label_smoothing=recipe.fit.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if recipe.fit.clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(graph.network.parameters(), recipe.fit.clip_norm)
        scaler.step(optimizer)
        scaler.update()
    except torch.OutOfMemoryError as error:
        size = recipe.fit.batch_size
        raise FitError(
            f"recipe '{recipe.name}': the {plan.device} is out of memory at fit.batch_size {size}; "
            f"try --set fit.batch_size={max(1, size // 2)}."
        ) from error
    except ValueError as error:
        if len(batch) > 1:
            raise
        raise FitError(
            f"recipe '{recipe.name}': a batch of one image cannot be fitted ({error}); "
            "set fit.batch_size to at least 2."
        ) from error
    return loss.detach(), right


def _finite(values: Tensor | list[float], what: str, epoch: int, rate: float, recipe: Recipe) -> None:
    if not math.isfinite(float(values[0])):
        raise FitError(
            f"recipe '{recipe.name}': the {what} is not finite in epoch {epoch} at learning rate {rate:g}; "
            f"try --set optimizer.lr={recipe.optimizer.lr / 10:g} or --set fit.clip_norm=1."
        )
