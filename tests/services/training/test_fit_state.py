"""A fit that goes on from any place ends as one that was never stopped: the same weights, to the bit, and history."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from contracts.images import ImageSpec
from contracts.recipe import Recipe, parse
from services.training import batches, checkpoint_file
from services.training.checkpoint_file import Snapshot
from services.training.checkpoints import Checkpoints
from services.training.data.dataset import Split
from services.training.device import Plan
from services.training.fit import FitResult, fit
from services.training.fit_state import FitState
from services.training.networks import ServedGraph, build
from services.training.progress import Progress
from tests.services.training.plans import EVERY_AUGMENTATION, cpu_plan

SPEC = ImageSpec(height=8, width=8, channels=1)
FIT = {"epochs": 3, "batch_size": 16, "precision": "fp32"}
RECIPES: dict[str, dict[str, Any]] = {
    "adam": {},
    "every augmentation, mixed labels, averaged weights": {
        "augmentation": EVERY_AUGMENTATION,
        "fit": {**FIT, "ema": 0.99},
        "schedule": {"name": "one_cycle"},
    },
    "momentum and a plateau": {
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True},
        "schedule": {"name": "plateau", "patience": 1, "factor": 0.5, "min_delta": 0.5},
        "fit": {**FIT, "clip_norm": 1.0},
    },
    "RMSprop as Keras has it": {
        "optimizer": {"name": "rmsprop", "lr": 0.001, "momentum": 0.5, "epsilon_inside_sqrt": True},
        "fit": {**FIT, "restore_best": False},
    },
    "RMSprop as torch has it": {"optimizer": {"name": "rmsprop", "lr": 0.001, "momentum": 0.5}},
    "early stopping": {
        "optimizer": {"lr": 0.05},
        "fit": {**FIT, "epochs": 12, "early_stopping": {"patience": 2, "monitor": "validation/loss"}},
    },
    "decay and cosine": {
        "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup": 0.2},
    },
}


class Epochs:
    def epoch(self, step: int, metrics: dict[str, float]) -> None: ...


class EveryState:
    """Keeps the state after every step and every epoch, and as validation begins."""

    def __init__(self) -> None:
        self.kept: list[Snapshot] = []

    def due(self, *, epoch_done: bool = False) -> bool:  # noqa: ARG002
        return True

    def save(self, state: FitState) -> None:
        self.kept.append(state.snapshot())

    def running(self) -> AbstractContextManager[object]:
        return nullcontext()

    @contextmanager
    def at_once(self, state: FitState) -> Iterator[None]:
        self.save(state)
        yield


def images_of(n: int, seed: int) -> Split:
    """Two classes of stripes, under so much noise that no epoch is like the one before."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    pattern = np.where(np.arange(8) % 2, 160.0, 90.0)
    images = np.where(labels[:, None, None] == 1, pattern[None, None, :], pattern[None, :, None])
    images = images + random.normal(0, 60, images.shape)
    return Split(images=images.clip(0, 255).astype(np.uint8)[..., None], labels=labels.astype(np.int64))


def recipe_of(parts: dict[str, Any]) -> Recipe:
    content: dict[str, Any] = {
        "data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
        "model": {
            "kind": "convnet",
            "blocks": [
                {"filters": 4, "padding": "same", "norm": "batch", "dropout": 0.2},
                {"filters": 6, "padding": "same"},
            ],
            "head": {"units": [8], "dropout": 0.3},
        },
        "optimizer": {"lr": 0.01},
        "fit": FIT,
        **parts,
    }
    return parse(content, name="resumed")


def plan_of(precision: str) -> Plan:
    return cpu_plan(precision=precision, threads=torch.get_num_threads())


def run(recipe: Recipe, precision: str = "fp32", *, resume: Snapshot | None = None, keeper: Any = None) -> Any:
    torch.manual_seed(recipe.fit.seed if resume is None else 999)  # what the checkpoint does not bring would differ
    network = build(recipe.model, image=SPEC, classes=2)
    graph = ServedGraph(network, output=recipe.output, mean=(0.0,), std=(1.0,))
    if resume is None:
        torch.manual_seed(recipe.fit.seed)
    result = fit(
        graph,
        images_of(135, 1),
        images_of(60, 2),
        recipe,
        plan_of(precision),
        log=Epochs(),
        progress=Progress(show=False),
        keeper=keeper,
        resume=resume,
    )
    return graph.state_dict(), result


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def course(result: FitResult) -> list[dict[str, float]]:
    """What every epoch came to, without what a clock says."""
    clock = ("images_per_second", "epoch_seconds")
    return [{key: value for key, value in metrics.items() if key not in clock} for metrics in result.history]


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batches._AHEAD, "cpu", 64 * 40)  # two or three batches at once, not all


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", RECIPES)
def test_a_fit_that_goes_on_from_any_place_ends_in_the_same_weights(kind: str, precision: str, tmp_path: Path) -> None:
    recipe = recipe_of(RECIPES[kind])
    keeper = EveryState()
    weights, result = run(recipe, precision, keeper=keeper)
    steps_an_epoch = 9  # 135 images in batches of 16
    assert len(keeper.kept) == len(result.history) * (steps_an_epoch + 2)
    random = np.random.default_rng(0)
    first, last = 0, len(keeper.kept) - 1
    ends = [index for index, kept in enumerate(keeper.kept) if kept.batch in (0, steps_an_epoch)]
    places = {first, last, *random.choice(ends, 2), *random.choice(last, 3)}
    for place in sorted(places):
        kept = keeper.kept[place]
        from_disk = checkpoint_file.read(checkpoint_file.write(tmp_path, kept, "ours"), "ours")
        again, resumed = run(recipe, precision, resume=from_disk)
        assert same(weights, again), f"epoch {kept.epoch}, batch {kept.batch}"
        assert course(resumed) == course(result)
        assert (resumed.best_epoch, resumed.stopped, resumed.resumed) == (result.best_epoch, result.stopped, 1)


@pytest.mark.parametrize("features", ["no: the test wants it whole", "yes: the test wants them once"])
def test_a_fit_on_a_held_base_goes_on_with_or_without_its_features(features: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = Split(images=random.integers(0, 256, (20, 33, 33, 3), dtype=np.uint8), labels=np.arange(20) % 2)
    content = {
        "data": {"dataset": "cifar10", "image": {"height": 33, "width": 33, "channels": 3}, "classes": ["a", "b"]},
        "model": {"kind": "backbone", "name": "resnet18", "frozen": ["base"], "head": {"units": [8], "dropout": 0.2}},
        "optimizer": {"lr": 0.01},
        "fit": {"epochs": 2, "batch_size": 8, "precision": "fp32", "ema": 0.9},
    }
    recipe = parse(content, name="held")

    def held(resume: Snapshot | None = None, keeper: Any = None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        network = build(recipe.model, image=recipe.data.image, classes=2)
        graph = ServedGraph(network, output=recipe.output, mean=(0.4,) * 3, std=(0.3,) * 3)
        plan = replace(plan_of("fp32"), features=features)
        fit(
            graph,
            images,
            images,
            recipe,
            plan,
            log=Epochs(),
            progress=Progress(show=False),
            keeper=keeper,
            resume=resume,
        )
        return graph.state_dict()

    keeper = EveryState()
    weights = held(keeper=keeper)
    for kept in (keeper.kept[1], keeper.kept[-2]):
        path = checkpoint_file.write(tmp_path, kept, "ours")
        assert same(weights, held(resume=checkpoint_file.read(path, "ours"))), f"{kept.epoch}, {kept.batch}"


def test_the_recipes_here_do_what_their_names_say() -> None:
    assert len(run(recipe_of(RECIPES["early stopping"]))[1].history) < 12
    rates = [metrics["lr"] for metrics in run(recipe_of(RECIPES["momentum and a plateau"]))[1].history]
    assert len(set(rates)) > 1
    plain, augmented = (run(recipe_of(RECIPES[kind]))[0] for kind in list(RECIPES)[:2])
    assert not same(plain, augmented)


def test_a_fit_may_be_resumed_again_and_again(tmp_path: Path) -> None:
    recipe = recipe_of(RECIPES["every augmentation, mixed labels, averaged weights"])
    weights, _ = run(recipe)
    kept: Snapshot | None = None
    for _ in range(5):
        keeper = EveryState()
        run(recipe, resume=kept, keeper=keeper)
        kept = keeper.kept[len(keeper.kept) // 3]
    again, result = run(recipe, resume=kept)
    assert same(weights, again)
    assert result.resumed == 5


def test_the_moments_of_the_optimizer_keep_their_order_in_memory(tmp_path: Path) -> None:
    """A fused optimizer walks weights and moments side by side, and would mix up those of channels_last weights."""
    recipe = recipe_of({})
    keeper = EveryState()
    run(recipe, keeper=keeper)
    kept = keeper.kept[3]
    found = checkpoint_file.read(checkpoint_file.write(tmp_path, kept, "ours"), "ours")
    four = [name for name, value in kept.tensors.items() if name.startswith("optimizer.") and value.dim() == 4]
    assert any(not kept.tensors[name].is_contiguous() for name in four)
    assert all(found.tensors[name].stride() == kept.tensors[name].stride() for name in four)


def test_a_snapshot_does_not_move_with_the_fit() -> None:
    keeper = EveryState()
    run(recipe_of({"fit": {**FIT, "ema": 0.9}}), keeper=keeper)
    early, late = keeper.kept[2], keeper.kept[-1]
    moving = [name for name in early.tensors if name.endswith("weight") and not name.startswith("best")]
    assert len(moving) > 6
    assert all(not torch.equal(early.tensors[name], late.tensors[name]) for name in moving)


@pytest.mark.gpu
def test_a_state_on_a_gpu_comes_back_to_the_bit_while_the_fit_goes_on(tmp_path: Path) -> None:
    recipe = recipe_of({"fit": {**FIT, "ema": 0.9}, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}})
    plan = replace(plan_of("bf16"), device="cuda")

    def begin() -> FitState:
        network = build(recipe.model, image=SPEC, classes=2).cuda()
        graph = ServedGraph(network, output=recipe.output, mean=(0.0,), std=(1.0,)).cuda()
        return FitState.begin(graph, recipe, plan, batches=9)

    state = begin()
    with Checkpoints(tmp_path, "ours", every_s=60) as kept:
        for parameter in state.graph.network.parameters():
            parameter.grad = torch.randn_like(parameter)
        state.optimizer.step()
        state.batch = 1
        expected = {name: value.cpu() for name, value in state.snapshot().tensors.items()}
        kept.save(state)
        for _ in range(100):  # the steps that follow must not reach what is being written
            state.optimizer.step()
        kept._wait()
        found = kept.newest()
    assert found is not None
    again = begin()
    again.restore(found)
    restored = {name: value.cpu() for name, value in again.snapshot().tensors.items()}
    assert restored.keys() == expected.keys()
    assert same(expected, restored)


def test_the_time_of_a_resumed_fit_counts_what_it_took_before() -> None:
    keeper = EveryState()
    _, whole = run(recipe_of({}), keeper=keeper)
    last = keeper.kept[-1]
    _, resumed = run(recipe_of({}), resume=last)
    assert resumed.seconds >= last.state["seconds"] > 0
    assert resumed.images_per_second == whole.images_per_second
