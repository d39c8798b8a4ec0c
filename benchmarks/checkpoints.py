"""What checkpoints cost a fit: the seconds that its loop waits for them, and the CPU seconds of the thread that writes.

    python -m benchmarks.checkpoints [--recipe mnist-best] [--images 6400] [--epochs 6] [--seconds 1]

Fits random images with checkpoints after every epoch and every second (sixty times as often as by default) and prints
their share of the fit's time; exits 1 above 2%. Under a minute on one core.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.loop import Nowhere, make, planned, synthetic
from contracts.recipe import Recipe
from pipelines import recipe_files
from services.training.checkpoints import Checkpoints
from services.training.data.dataset import Split
from services.training.fit import fit
from services.training.fit_state import FitState
from services.training.progress import Progress

CEILING = 0.02


class Measured(Checkpoints):
    """Notes how long the loop stood still for each."""

    def save(self, state: FitState) -> None:
        started = time.perf_counter()
        super().save(state)
        stood_s.append(time.perf_counter() - started)


stood_s: list[float] = []


def longer(recipe: Recipe, epochs: int) -> Recipe:
    return recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"epochs": epochs, "early_stopping": None})})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mnist-best")
    parser.add_argument("--images", type=int, default=6_400)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    recipe = longer(recipe_files.load(options.recipe), options.epochs)
    plan = planned("fp32")
    torch.set_num_threads(plan.threads)
    split = synthetic(recipe, options.images, classes=10)
    tiny = Split(images=split.images[:64], labels=split.labels[:64])
    with tempfile.TemporaryDirectory() as directory:
        with Measured(Path(directory), "benchmark", every_s=options.seconds) as kept:
            result = fit(
                make(recipe, 10),
                split,
                tiny,
                recipe,
                plan,
                log=Nowhere(),
                progress=Progress(show=False),
                keeper=kept,
            )
        size = max(path.stat().st_size for path in Path(directory).iterdir())
    share = kept.spent_s / result.seconds
    median_ms, most_ms = 1000 * statistics.median(stood_s), 1000 * max(stood_s)
    print(
        f"{options.recipe} on {plan.device}: {kept.written} checkpoints of {size / 1e6:.1f} MB in"
        f" {result.seconds:.1f} s, {100 * share:.2f}% of the time; the loop stood still for {median_ms:.1f} ms each"
        f" (most {most_ms:.1f})"
    )
    return 0 if share <= CEILING else 1


if __name__ == "__main__":
    raise SystemExit(main())
