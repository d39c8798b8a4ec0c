"""The fit loop against the bare forward-backward-step on the same tensors, in one run.

    python -m benchmarks.loop [--recipe mnist] [--images 12800] [--repeats 9]

Prints images/s of both and the median of their ratio; exits 1 below 0.97. About 40 s on two cores. On the CPU one
thread computes and its CPU seconds are counted, since wall time on a shared machine varies by more than the bar; the
loop's side holds everything from the call of `fit` on.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch

from contracts.recipe import Recipe
from pipelines import recipe_files
from services.training.data.dataset import Split
from services.training.device import Plan, Precision
from services.training.fit import fit
from services.training.networks import ServedGraph, build
from services.training.objective import loss_and_correct
from services.training.optimizers import make_optimizer
from services.training.progress import Progress

FLOOR = 0.97


class Nowhere:
    def epoch(self, step: int, metrics: dict[str, float]) -> None: ...


def planned(precision: Precision) -> Plan:
    """A plan with one thread for the CPU, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Plan(
        device=device,
        device_name=device,
        device_reason="benchmark",
        precision=precision,
        channels_last=True,
        precision_reason="benchmark",
        threads=1,
    )


def one_epoch(recipe: Recipe) -> Recipe:
    """One epoch, whose weights are kept as they are: a copy of the best ones is no part of what is measured."""
    return recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"epochs": 1, "restore_best": False})})


def clock(plan: Plan) -> float:
    if plan.device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def synthetic(recipe: Recipe, images: int, classes: int) -> Split:
    """Random images of the recipe's shape: the arithmetic is the same, and no data set is needed."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (images, *recipe.data.image.shape), dtype=np.uint8)
    return Split(images=pixels, labels=random.integers(0, classes, images).astype(np.int64))


def make(recipe: Recipe, classes: int) -> ServedGraph:
    torch.manual_seed(0)
    channels = recipe.data.image.channels
    network = build(recipe.model, image=recipe.data.image, classes=classes)
    return ServedGraph(network, output=recipe.output, mean=(0.0,) * channels, std=(1.0,) * channels)


def loop(recipe: Recipe, split: Split, plan: Plan, classes: int) -> float:
    tiny = Split(images=split.images[:8], labels=split.labels[:8])
    graph = make(recipe, classes)
    started = clock(plan)
    fit(graph, split, tiny, recipe, plan, log=Nowhere(), progress=Progress(show=False))
    return len(split.labels) / (clock(plan) - started)


def bare(recipe: Recipe, split: Split, plan: Plan, classes: int) -> float:
    """Forward, backward and step on float batches that are ready: nothing is gathered, scaled, counted or checked."""
    graph = make(recipe, classes).to(plan.device).to(memory_format=plan.memory_format).train()
    optimizer = make_optimizer(recipe.optimizer, graph.network.parameters())
    size = recipe.fit.batch_size
    pixels = graph.normalize(torch.from_numpy(split.images[:size]).to(plan.device))
    pixels = pixels.contiguous(memory_format=plan.memory_format)
    labels = torch.from_numpy(split.labels[:size]).to(plan.device)
    steps = len(split.labels) // size
    started = clock(plan)
    for _ in range(steps):
        with plan.autocast():
            logits = graph.network(pixels)
        loss, _ = loss_and_correct(logits, labels, output=graph.output)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return steps * size / (clock(plan) - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="mnist")
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    options = parser.parse_args()
    recipe = one_epoch(recipe_files.load(options.recipe))
    plan = planned(options.precision)
    images = options.images // recipe.fit.batch_size * recipe.fit.batch_size
    split = synthetic(recipe, images, classes=10)
    with plan.computing():
        loop(recipe, split, plan, 10), bare(recipe, split, plan, 10)
        pairs = [(loop(recipe, split, plan, 10), bare(recipe, split, plan, 10)) for _ in range(options.repeats)]
    ratios = [a / b for a, b in pairs]
    ours, limit = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"{options.recipe} {options.precision} on {plan.device}: loop {ours:,.0f} images/s, bare step {limit:,.0f},"
        f" ratio {statistics.median(ratios):.3f} (min {min(ratios):.3f}, max {max(ratios):.3f}, n={len(ratios)})"
    )
    return 0 if statistics.median(ratios) >= FLOOR else 1


if __name__ == "__main__":
    raise SystemExit(main())
