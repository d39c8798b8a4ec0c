"""A fit of several workers against the same fit of one: weights, statistics and metrics, to rounding."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from contracts.errors import Diverged
from contracts.images import ImageSpec
from contracts.recipe import Recipe, parse
from services.training.data.dataset import Split
from services.training.distributed.workers import WorkerLost, Workers
from services.training.fit import fit
from services.training.group import ALONE, Group
from services.training.networks import ServedGraph, build
from services.training.progress import Progress
from tests.services.training.distributed.conftest import Together
from tests.services.training.plans import EVERY_AUGMENTATION, cpu_plan

SPEC = ImageSpec(height=8, width=8, channels=1)
PLAN = cpu_plan()
Outcome = tuple[dict[str, torch.Tensor], list[dict[str, float]]]


class Unlogged:
    def epoch(self, step: int, metrics: dict[str, float]) -> None: ...


def images(n: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    pixels = random.normal(90, 40, (n, 8, 8, 1)) + 30 * labels[:, None, None, None]
    return Split(images=pixels.clip(0, 255).astype(np.uint8), labels=labels.astype(np.int64))


def recipe_of(**parts: Any) -> Recipe:
    content: dict[str, Any] = {
        "data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
        "model": {"kind": "convnet", "blocks": [{"filters": 6, "padding": "same"}], "head": {"units": [12]}},
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
        "fit": {"epochs": 2, "batch_size": 32, "precision": "fp32", "restore_best": False},
        **parts,
    }
    return parse(content, name="shared")


def fitted(recipe: Recipe, group: Group, *, train: int = 150) -> Outcome:
    torch.manual_seed(0)
    graph = ServedGraph(build(recipe.model, image=SPEC, classes=3), output="softmax", mean=(0.4,), std=(0.2,))
    torch.manual_seed(1)
    result = fit(
        graph,
        images(train, 1),
        images(70, 2),
        recipe,
        PLAN,
        log=Unlogged(),
        progress=Progress(show=False, stream=io.StringIO()),
        group=group,
    )
    return {name: value.clone() for name, value in graph.state_dict().items()}, result.history


def check_same(mine: Outcome, theirs: Outcome, *, tolerance: float = 2e-5) -> None:
    for name, value in theirs[0].items():
        torch.testing.assert_close(mine[0][name], value, rtol=tolerance, atol=tolerance)
    for epoch, expected in zip(mine[1], theirs[1], strict=True):
        for key in ("train/loss", "train/accuracy", "validation/loss", "validation/accuracy", "lr"):
            assert epoch[key] == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key


BATCH_NORM = {
    "kind": "convnet",
    "blocks": [{"filters": 6, "padding": "same", "norm": "batch", "bias": False}, {"filters": 6, "norm": "batch"}],
    "head": {"units": [12]},
}
DROPOUT = {
    "kind": "convnet",
    "blocks": [{"filters": 6, "padding": "same", "dropout": 0.2}],
    "head": {"units": [12], "dropout": 0.4},
}
FIT = {"epochs": 2, "batch_size": 32, "precision": "fp32", "restore_best": False}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch norm": {"model": BATCH_NORM},
    "dropout": {"model": DROPOUT},
    "augmented": {"augmentation": EVERY_AUGMENTATION},
    "clipped, averaged, scheduled, stopped": {
        "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.01},
        "schedule": {"name": "plateau", "patience": 1, "min_delta": 0.5},
        "fit": {
            **FIT,
            "epochs": 4,
            "clip_norm": 0.5,
            "ema": 0.9,
            "label_smoothing": 0.1,
            "early_stopping": {"patience": 3},
        },
    },
}


@pytest.mark.parametrize("case", CASES)
def test_two_workers_come_to_the_weights_and_metrics_of_one(case: str, together: Together) -> None:
    recipe = recipe_of(**CASES[case])
    alone = fitted(recipe, ALONE)
    first, second = together(2, lambda group: fitted(recipe, group))
    check_same(first, alone)
    assert all(torch.equal(value, second[0][name]) for name, value in first[0].items())


def test_a_last_batch_of_fewer_images_than_workers_counts_as_it_does_for_one(together: Together) -> None:
    recipe = recipe_of(model=BATCH_NORM, augmentation={"mixup": 0.2, "shift": 0.1})
    alone = fitted(recipe, ALONE, train=98)
    check_same(together(3, lambda group: fitted(recipe, group, train=98))[0], alone)


def test_a_loss_that_is_not_finite_ends_all_workers_with_the_same_sentence(together: Together) -> None:
    recipe = recipe_of(optimizer={"name": "sgd", "lr": 1e30})
    for error in together(2, lambda group: fitted(recipe, group)):
        assert isinstance(error, Diverged)
        assert "the loss is not finite in epoch 1" in error.message


def test_a_worker_that_leaves_is_missed_by_the_others(together: Together) -> None:
    def job(group: Workers) -> Any:
        dist.barrier()  # or it might leave while the other is still connecting to it
        if group.rank == 1:
            dist.destroy_process_group()
            return None
        return fitted(recipe_of(), group)

    lost, _ = together(2, job)
    assert isinstance(lost, WorkerLost)
    assert lost.code == 75
