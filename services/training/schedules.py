"""The learning rate over a fit, and when to stop: plain state that a checkpoint can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from contracts.recipe import Schedule


@dataclass(slots=True)
class Patience:
    """Counts the epochs in a row without a better value, as Keras' callbacks do.

    Keras acts when the count *reaches* the patience; torch's ReduceLROnPlateau acts when it is passed, and measures
    `min_delta` relative to the best value, so with torch's the same settings fire later or not at all.
    """

    patience: int
    higher_is_better: bool
    min_delta: float = 0.0
    best: float | None = None
    waited: int = 0

    def better(self, value: float) -> bool:
        """Take the value of an epoch; tell whether it is better than the best before it by more than `min_delta`."""
        gain = math.inf if self.best is None else (value - self.best) * (1 if self.higher_is_better else -1)
        if gain > self.min_delta:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False

    @property
    def exhausted(self) -> bool:
        return self.waited >= self.patience

    def state(self) -> dict[str, Any]:
        """What changes from epoch to epoch; JSON."""
        return {"best": self.best, "waited": self.waited}

    def load(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


@dataclass(slots=True)
class LearningRate:
    """The learning rate: `at` a step, changed by `after_epoch` where it follows a metric."""

    config: Schedule
    peak: float
    steps: int
    """Steps of the whole fit."""
    scale: float = 1.0
    plateau: Patience = field(init=False)

    def __post_init__(self) -> None:
        higher = self.config.monitor.endswith("accuracy")
        self.plateau = Patience(self.config.patience, higher, self.config.min_delta)

    def at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        if self.config.name == "constant":
            return self.peak
        if self.config.name == "plateau":
            return max(self.peak * self.scale, min(self.config.min_lr, self.peak))
        end = self.config.min_lr
        usual = 0.3 if self.config.name == "one_cycle" else 0.0
        rise = int((usual if self.config.warmup is None else self.config.warmup) * self.steps)
        if step < rise:
            # one_cycle starts at a 25th of its peak (Smith 2018; fastai's and torch's default)
            start = self.peak / 25 if self.config.name == "one_cycle" else 0.0
            return start + (self.peak - start) * (step + 1) / rise
        done = (step - rise) / max(1, self.steps - rise)
        return end + (self.peak - end) * (1 + math.cos(math.pi * min(1.0, done))) / 2

    def after_epoch(self, metrics: dict[str, float]) -> None:
        """Take the metrics of an epoch; a plateau lowers the learning rate."""
        if self.config.name != "plateau":
            return
        if not self.plateau.better(metrics[self.config.monitor]) and self.plateau.exhausted:
            self.scale *= self.config.factor
            self.plateau.waited = 0

    def state(self) -> dict[str, Any]:
        """What changes from epoch to epoch; JSON."""
        return {"scale": self.scale, "plateau": self.plateau.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.scale = state["scale"]
        self.plateau.load(state["plateau"])
