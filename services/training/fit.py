"""The fit: one loop, top to bottom, over uint8 images that live on the device, or are read ahead of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from contracts.errors import Diverged
from contracts.recipe import Recipe
from services.training.batches import Batches
from services.training.checkpoint_file import Snapshot
from services.training.data.dataset import Split
from services.training.device import Plan
from services.training.evaluate import evaluate
from services.training.features import FittedPart
from services.training.fit_state import FitState
from services.training.group import ALONE, Group
from services.training.keeper import Keeper, Unkept
from services.training.loader import open_source
from services.training.memory import naming_the_batch_size
from services.training.networks import ServedGraph
from services.training.progress import Progress
from services.training.step import make_step, set_rate


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
    resumed: int
    """How often it went on from a checkpoint."""
    images_from: str
    """Where the training images were read from, and why."""


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
    keeper: Keeper | None = None,
    resume: Snapshot | None = None,
    group: Group = ALONE,
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
        keeper: Saves the state of the fit while it runs.
        resume: What a keeper saved of the same recipe, data, plan and code: the fit goes on from there and, on the
            CPU, ends in the same weights, to the bit, as if it had never been stopped.
        group: The workers that fit together. All call this at once, with the same data, recipe and plan; weights, a
            keeper and what it resumes from are taken of the first one.

    Raises:
        Diverged: the loss is not finite any more.
        FitError: the device is out of memory.
        Terminated, KeyboardInterrupt: the keeper was told to stop.
    """
    keeper = keeper or Unkept()
    with naming_the_batch_size(recipe, plan.device):
        config, device = recipe.fit, torch.device(plan.device)
        graph.to(device).to(memory_format=plan.memory_format)
        group.same_weights(graph)
        sources = (open_source(split, device, workers=group.size) for split in (train, validation))
        part = FittedPart(graph, plan, *sources)
        graph, source, held_out = part.graph, part.source, part.held_out
        n = len(source)
        batches = Batches(
            source, batch_size=config.batch_size, augmentation=recipe.augmentation, seed=config.seed, group=group
        )

        state = FitState.begin(graph, recipe, plan, batches=len(batches))
        if resume is not None:
            state.restore(resume)
        group.same_state(state)
        take = make_step(graph, recipe, plan, state.optimizer, state.scaler, group)
        progress.start(epochs=config.epochs, images=n)
        if resume is not None:
            progress.note(f"goes on after epoch {state.epoch} and {state.batch} of {len(batches)} batches")
        with group.joined(graph), keeper.running():
            while not state.done:
                graph.train()
                epoch = state.epoch + 1
                epoch_started = time.perf_counter() - state.epoch_seconds
                coming = batches.epoch(epoch, first=state.batch)
                for (start, stop), (batch, truth) in zip(batches.bounds[state.batch :], coming, strict=True):
                    rate = state.learning_rate.at(state.step)
                    set_rate(state.optimizer, rate)
                    group.begin_batch(stop - start)
                    loss, right = take(batch, truth)
                    if state.average is not None:
                        state.average.update()
                    state.totals += torch.stack((loss * (stop - start), right))
                    state.step += 1
                    state.batch += 1
                    if progress.due():  # a few times a second: only then does an epoch wait for the device
                        _finite(state.totals, "loss", epoch, rate, recipe)
                        progress.step(epoch, stop, state.totals.tolist())
                    if keeper.due():
                        _finite(state.totals, "loss", epoch, rate, recipe)  # nobody wants to go on from there
                        state.epoch_seconds = time.perf_counter() - epoch_started
                        keeper.save(state)
                rate = state.learning_rate.at(state.step - 1)
                _finite(state.totals, "loss", epoch, rate, recipe)
                loss_sum, right_sum = state.totals.tolist()
                state.epoch_seconds = time.perf_counter() - epoch_started

                with keeper.at_once(state):
                    validation_loss, validation_accuracy = evaluate(
                        state.judged, held_out, precision=plan.autocast(), group=group
                    )
                    # NaN would stay the best value for ever
                    _finite([validation_loss], "validation loss", epoch, rate, recipe)
                    metrics = {
                        "train/loss": loss_sum / n,
                        "train/accuracy": right_sum / n,
                        "validation/loss": validation_loss,
                        "validation/accuracy": validation_accuracy,
                        "lr": rate,
                        "images_per_second": n / state.epoch_seconds,
                        "epoch_seconds": state.epoch_seconds,
                    }
                    log.epoch(epoch, metrics)
                    progress.epoch(epoch, metrics)
                    watch(epoch, part.whole(state.judged))
                state.finish_epoch(metrics)
                if keeper.due(epoch_done=True) or state.done:  # what follows the last epoch may be stopped, too
                    keeper.save(state)
    progress.close()
    if config.restore_best and state.best is not None:
        graph.load_state_dict(state.best)
    else:
        graph.load_state_dict(state.judged.state_dict())
        state.best_epoch = state.epoch
    part.close()
    all_done = f"all {config.epochs} epochs are done"
    waited = f"{state.monitor} was not better for {state.patience.patience} epochs in a row"
    return FitResult(
        history=state.history,
        best_epoch=state.best_epoch,
        best=state.history[state.best_epoch - 1],
        seconds=state.seconds,
        images_per_second=n * state.epoch / state.training_seconds,
        stopped=waited if state.exhausted else all_done,
        resumed=state.resumed,
        images_from=source.reason,
    )


def _finite(values: Tensor | list[float], what: str, epoch: int, rate: float, recipe: Recipe) -> None:
    if not math.isfinite(float(values[0])):
        raise Diverged(
            f"recipe '{recipe.name}': the {what} is not finite in epoch {epoch} at learning rate {rate:g}; "
            f"try --set optimizer.lr={recipe.optimizer.lr / 10:g} or --set fit.clip_norm=1."
        )
