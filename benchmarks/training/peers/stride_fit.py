"""Stride's own fit, whole: `services.training.train.train`, with its MLflow run, its pictures and its checkpoints.

    python -m benchmarks.training.peers.stride_fit JOB.json

What is measured is what `stride train` runs; the loop's own hooks (`log`, `watch`) say where an epoch ends.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.training.turns import Turns
from contracts.recipe import parse
from services.training import fit as loop
from services.training import train as training
from services.training.data.dataset import Split
from services.training.evaluate import evaluate
from services.training.loader import open_source
from services.training.networks import ServedGraph, count_parameters


class Listener:
    """Stands between the loop and its log, and keeps what it hears."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self.metrics: dict[str, float] = {}

    def epoch(self, step: int, metrics: dict[str, float]) -> None:
        self.metrics = dict(metrics)
        self._log.epoch(step, metrics)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


class Stopwatch:
    """Seconds spent in a function since it was last asked."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._seconds = 0.0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return self._function(*arguments, **options)
        finally:
            self._seconds += time.perf_counter() - started

    def lap(self) -> float:
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def main() -> None:
    turns = Turns()
    job = json.loads(Path(sys.argv[1]).read_text())
    recipe = parse(job["recipe"], name=job["recipe"]["name"])
    torch.set_num_threads(job["threads"])
    folder = Path(job["data"])
    fit, validating = loop.fit, Stopwatch(evaluate)

    def fit_in_turns(graph: ServedGraph, train: Any, validation: Any, recipe: Any, plan: Any, **rest: Any) -> Any:
        listener, watch = Listener(rest["log"]), rest["watch"]
        test = open_source(
            Split(images=np.load(folder / "test-images.npy"), labels=np.load(folder / "test-labels.npy")), plan.device
        )

        def accuracy(judged: ServedGraph) -> float:
            return evaluate(judged, test, precision=plan.autocast())[1]

        def watch_in_turns(epoch: int, judged: ServedGraph) -> None:
            watch(epoch, judged)
            found = listener.metrics
            metrics = {
                "train_loss": found["train/loss"],
                "validation_accuracy": found["validation/accuracy"],
                "steps_seconds": found["epoch_seconds"],
                "validation_seconds": validating.lap(),
            }
            turns.epoch(metrics, judge=lambda: accuracy(judged))

        facts = plan.facts()
        turns.ready(
            parameters=count_parameters(graph.network).total,
            images=len(train),
            versions={name: version(name) for name in ("torch", "torchvision", "mlflow", "numpy")},
            how=f"{plan.precision}, {'channels-last' if plan.channels_last else 'contiguous'}, {plan.threads} threads",
            plan=facts,
        )
        return fit(graph, train, validation, recipe, plan, **{**rest, "log": listener, "watch": watch_in_turns})

    with mock.patch.object(training, "fit", fit_in_turns), mock.patch.object(loop, "evaluate", validating):
        result = training.train(recipe, force=True, progress=False)
    turns.done(test_accuracy=result.test_accuracy)


if __name__ == "__main__":
    main()
