"""Everything that a fit changes while it runs: what a checkpoint holds, and what a resumed fit begins with."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from contracts.recipe import Recipe
from services.training.averaging import Average
from services.training.checkpoint_file import Snapshot
from services.training.device import Plan
from services.training.networks import ServedGraph
from services.training.optimizers import load_state, make_optimizer
from services.training.schedules import LearningRate, Patience


@dataclass(kw_only=True, slots=True)
class FitState:
    """A fit between two steps; `snapshot` and `restore` are each other's inverse, to the bit.

    Not in it: the data, and the plan, which stay as they are from the first step to the last.
    """

    recipe: Recipe
    plan: Plan
    graph: ServedGraph
    average: Average | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    learning_rate: LearningRate
    monitor: str
    """The metric of validation that decides which epoch is the best."""
    patience: Patience
    totals: Tensor
    """Sums over the images of this epoch so far, on the device: loss and right answers."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The metrics of the epochs that are done."""
    batch: int = 0
    """How many batches of the epoch after those are done."""
    step: int = 0
    """How many steps are done in all."""
    best_epoch: int = 0
    """Counted from 1."""
    best: dict[str, Tensor] | None = None
    """The weights of that epoch, where `fit.restore_best` keeps them."""
    training_seconds: float = 0.0
    """Of the training steps of the epochs that are done."""
    epoch_seconds: float = 0.0
    """Of the training steps of this epoch, up to where the fit was last saved or its steps ended."""
    started: float = field(default_factory=time.perf_counter)
    """By `time.perf_counter`; moved back by the time that a resumed fit took before."""
    resumed: int = 0
    """How often the fit went on from a checkpoint."""

    @classmethod
    def begin(cls, graph: ServedGraph, recipe: Recipe, plan: Plan, *, batches: int) -> Self:
        """The state before the first step.

        Args:
            graph: On the plan's device, in its memory format; its weights are those that the steps will change.
            recipe: What is fitted.
            plan: How.
            batches: In an epoch.
        """
        config = recipe.fit
        stopping = config.early_stopping
        monitor = stopping.monitor if stopping else "validation/accuracy"
        return cls(
            recipe=recipe,
            plan=plan,
            graph=graph,
            average=Average(graph, config.ema) if config.ema is not None else None,
            optimizer=make_optimizer(recipe.optimizer, graph.network),
            scaler=torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16"),
            learning_rate=LearningRate(recipe.schedule, recipe.optimizer.lr, batches * config.epochs),
            monitor=monitor,
            patience=Patience(
                patience=stopping.patience if stopping else config.epochs,
                higher_is_better=monitor.endswith("accuracy"),
                min_delta=stopping.min_delta if stopping else 0.0,
            ),
            totals=torch.zeros(2, device=plan.device),
        )

    @property
    def epoch(self) -> int:
        """How many epochs are done."""
        return len(self.history)

    @property
    def judged(self) -> ServedGraph:
        """Whose weights are evaluated and kept."""
        return self.average.graph if self.average else self.graph

    @property
    def exhausted(self) -> bool:
        """Whether early stopping ends the fit."""
        return self.recipe.fit.early_stopping is not None and self.patience.exhausted

    @property
    def done(self) -> bool:
        return self.epoch >= self.recipe.fit.epochs or self.exhausted

    @property
    def seconds(self) -> float:
        """Of the whole fit so far, the time before it was resumed included."""
        return time.perf_counter() - self.started

    def finish_epoch(self, metrics: dict[str, float]) -> None:
        """Take the metrics of an epoch: keep its weights if it is the best, move the learning rate, count on."""
        self.history.append(metrics)
        self.training_seconds += self.epoch_seconds
        self.batch, self.epoch_seconds = 0, 0.0
        self.totals = torch.zeros_like(self.totals)
        if self.patience.better(metrics[self.monitor]):
            self.best_epoch = self.epoch
            if self.recipe.fit.restore_best:
                self.best = {name: value.clone() for name, value in self.judged.state_dict().items()}
        self.learning_rate.after_epoch(metrics)

    def snapshot(self) -> Snapshot:
        """A copy, on the device: nothing waits for it, and the next step may follow at once."""
        tensors = {"totals": self.totals, **_under("model", self.graph.state_dict())}
        numbers: dict[str, dict[str, Any]] = {}
        for index, values in self.optimizer.state_dict()["state"].items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    numbers.setdefault(str(index), {})[key] = value
        if self.average is not None:
            tensors |= _under("average", self.average.graph.state_dict())
        copies = {name: value.detach().clone() for name, value in tensors.items()}
        copies |= _under("best", self.best or {})  # nobody changes these: another best epoch makes new ones
        copies["generator.cpu"] = torch.get_rng_state()
        if self.plan.device == "cuda":
            copies["generator.cuda"] = torch.cuda.get_rng_state()
        state = {
            "history": list(self.history),
            "step": self.step,
            "best_epoch": self.best_epoch,
            "patience": self.patience.state(),
            "learning_rate": self.learning_rate.state(),
            "average_steps": self.average.steps if self.average else 0,
            "scaler": self.scaler.state_dict(),
            "optimizer": numbers,
            "training_seconds": self.training_seconds,
            "epoch_seconds": self.epoch_seconds,
            "seconds": self.seconds,
            "resumed": self.resumed,
        }
        return Snapshot(epoch=self.epoch, batch=self.batch, tensors=copies, state=state)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot of the same recipe, data, code and kind of device; torch's own generators too."""
        tensors, state = snapshot.tensors, snapshot.state
        self.graph.load_state_dict(_part(tensors, "model"))
        if self.average is not None:
            self.average.graph.load_state_dict(_part(tensors, "average"))
            self.average.steps = state["average_steps"]
        load_state(self.optimizer, _part(tensors, "optimizer"), state["optimizer"])
        if state["scaler"]:  # empty where it is not enabled
            self.scaler.load_state_dict(state["scaler"])
        self.learning_rate.load(state["learning_rate"])
        self.patience.load(state["patience"])
        self.totals = tensors["totals"].to(self.plan.device)
        self.best = {name: value.to(self.plan.device) for name, value in _part(tensors, "best").items()} or None
        self.history, self.best_epoch = list(state["history"]), state["best_epoch"]
        self.batch, self.step = snapshot.batch, state["step"]
        self.training_seconds, self.epoch_seconds = state["training_seconds"], state["epoch_seconds"]
        self.started = time.perf_counter() - state["seconds"]
        self.resumed = state["resumed"] + 1
        torch.set_rng_state(tensors["generator.cpu"])
        if self.plan.device == "cuda":
            torch.cuda.set_rng_state(tensors["generator.cuda"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}
