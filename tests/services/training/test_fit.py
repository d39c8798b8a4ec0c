from __future__ import annotations

import io
import math
import time
from typing import Any

import numpy as np
import pytest
import torch

from contracts.errors import FitError
from contracts.images import ImageSpec
from contracts.recipe import Block, Convnet, Data, Head, Recipe
from services.training.data.dataset import Split
from services.training.device import Plan
from services.training.evaluate import evaluate
from services.training.fit import FitResult, fit
from services.training.loader import open_source
from services.training.networks import ServedGraph, build
from services.training.optimizers import make_optimizer
from services.training.progress import Progress
from services.training.step import training_step
from tests.services.training.plans import cpu_plan

SPEC = ImageSpec(height=8, width=8, channels=1)


class Epochs:
    """Keeps what the loop logs."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def epoch(self, step: int, metrics: dict[str, float]) -> None:
        self.seen.append((step, metrics))


def stripes(n: int, seed: int, noise: float = 30.0) -> Split:
    """Two classes that a small network learns at once: horizontal and vertical stripes under noise."""
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    pattern = np.where(np.arange(8) % 2, 200.0, 50.0)
    images = np.where(labels[:, None, None] == 1, pattern[None, None, :], pattern[None, :, None])
    images = images + random.normal(0, noise, images.shape)
    return Split(images=images.clip(0, 255).astype(np.uint8)[..., None], labels=labels.astype(np.int64))


def recipe(output: str = "softmax", dropout: float = 0.0, **parts: Any) -> Recipe:
    block = Block(filters=4, padding="same", norm="batch", dropout=dropout)
    return Recipe.model_validate(
        {
            "name": "stripes",
            "model_name": "stripes",
            "data": Data(dataset="digits", image=SPEC),
            "model": Convnet(blocks=(block,), head=Head.model_validate({"units": (8,), "output": output})),
            "fit": {"epochs": 3, "batch_size": 16, "precision": "fp32"},
            "optimizer": {"lr": 0.01},
            **parts,
        }
    )


def plan(precision: str = "fp32") -> Plan:
    return cpu_plan(precision=precision, threads=torch.get_num_threads())


def graph_of(config: Recipe, seed: int = 0) -> ServedGraph:
    torch.manual_seed(seed)
    network = build(config.model, image=SPEC, classes=2)
    return ServedGraph(network, output=config.output, mean=(0.0,), std=(1.0,))


def run(
    config: Recipe, *, seed: int = 0, precision: str = "fp32", train: Split | None = None, log: Epochs | None = None
) -> tuple[ServedGraph, FitResult]:
    graph = graph_of(config, seed)
    result = fit(
        graph,
        train or stripes(200, 1),
        stripes(60, 2),
        config,
        plan(precision),
        log=log or Epochs(),
        progress=Progress(show=False),
    )
    return graph, result


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_learns_in_every_precision_and_output(output: str, precision: str) -> None:
    graph, result = run(recipe(output), precision=precision)
    test = stripes(100, 3)
    _, accuracy = evaluate(graph, open_source(test, "cpu"))
    assert accuracy > 0.95
    assert result.best["validation/accuracy"] > 0.95


def test_two_fits_from_one_seed_end_in_the_same_weights() -> None:
    config = recipe(dropout=0.3, augmentation={"rotation": 10, "flip_horizontal": True})
    first, second = run(config)[0].state_dict(), run(config)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = run(config.model_copy(update={"fit": config.fit.model_copy(update={"seed": 1})}))[0].state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_fits_with_every_augmentation_and_averaged_weights_end_in_the_same_weights(
    output: str, precision: str
) -> None:
    everything = {
        "flip_horizontal": True,
        "flip_vertical": True,
        "crop_padding": 1,
        "rotation": 20,
        "shift": 0.1,
        "shear": 5,
        "zoom": 0.1,
        "fill": "reflect",
        "cutout": 2,
        "brightness": 0.2,
        "contrast": 0.2,
        "mixup": 0.2,
        "cutmix": 1.0,
    }
    config = recipe(
        output,
        dropout=0.3,
        augmentation=everything,
        fit={"epochs": 2, "batch_size": 16, "precision": "fp32", "ema": 0.99},
    )
    (first, result), (second, _) = run(config, precision=precision), run(config, precision=precision)
    states = first.state_dict(), second.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert 0 < result.history[-1]["train/accuracy"] <= 1


def test_the_averaged_weights_are_evaluated_and_kept() -> None:
    fitting = {"epochs": 3, "batch_size": 16, "precision": "fp32", "ema": 0.9, "restore_best": False}
    watched: list[dict[str, torch.Tensor]] = []
    config = recipe(fit=fitting)
    graph = graph_of(config)
    held_out = stripes(60, 2, noise=200.0)
    result = fit(
        graph,
        stripes(200, 1),
        held_out,
        config,
        plan(),
        log=Epochs(),
        progress=Progress(show=False),
        watch=lambda _, seen: watched.append({name: value.clone() for name, value in seen.state_dict().items()}),
    )
    kept = graph.state_dict()
    assert all(torch.equal(value, watched[-1][name]) for name, value in kept.items())
    loss, _ = evaluate(graph, open_source(held_out, "cpu"))
    assert loss == pytest.approx(result.history[-1]["validation/loss"], rel=1e-4)
    without = run(recipe(fit={**fitting, "ema": None}))[0].state_dict()
    assert any(not torch.equal(value, without[name]) for name, value in kept.items())


def test_averaging_leaves_the_course_of_the_fit_as_it_is() -> None:
    fitting = {"epochs": 2, "batch_size": 16, "precision": "fp32"}
    plain, averaged = run(recipe(fit=fitting))[1], run(recipe(fit={**fitting, "ema": 0.9}))[1]
    assert [metrics["train/loss"] for metrics in plain.history] == [
        metrics["train/loss"] for metrics in averaged.history
    ]


def test_every_epoch_is_logged_with_the_same_keys_from_one() -> None:
    log = Epochs()
    _, result = run(recipe(), log=log)
    assert [step for step, _ in log.seen] == [1, 2, 3]
    assert [metrics for _, metrics in log.seen] == result.history
    assert {frozenset(metrics) for metrics in result.history} == {
        frozenset(
            {
                "train/loss",
                "train/accuracy",
                "validation/loss",
                "validation/accuracy",
                "lr",
                "images_per_second",
                "epoch_seconds",
            }
        )
    }


def test_early_stopping_ends_the_fit_and_the_best_weights_are_restored() -> None:
    noise = stripes(200, 1, noise=400.0)  # nothing to learn: validation stops getting better soon
    config = recipe(
        fit={"epochs": 60, "batch_size": 16, "precision": "fp32", "early_stopping": {"patience": 2}},
        optimizer={"lr": 0.05},
    )
    graph, result = run(config, train=noise)
    assert len(result.history) < 60
    assert result.best_epoch == len(result.history) - 2
    assert "was not better for 2 epochs" in result.stopped
    held_out = stripes(60, 2)
    loss, accuracy = evaluate(graph, open_source(held_out, "cpu"))
    assert accuracy == result.best["validation/accuracy"]
    assert loss == pytest.approx(result.best["validation/loss"], rel=1e-4)


def test_without_restore_best_the_last_weights_are_kept() -> None:
    config = recipe(fit={"epochs": 3, "batch_size": 16, "precision": "fp32", "restore_best": False})
    assert run(config)[1].best_epoch == 3


def test_a_loss_that_is_not_finite_stops_the_fit_with_a_remedy() -> None:
    config = recipe(optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(FitError, match=r"the loss is not finite in epoch 1 at learning rate 1e\+30; try --set"):
        run(config)


def test_clipping_bounds_the_step() -> None:
    config = recipe(
        optimizer={"name": "sgd", "lr": 1.0},
        fit={"epochs": 1, "batch_size": 200, "precision": "fp32", "clip_norm": 1e-3, "restore_best": False},
    )
    before = {name: value.clone() for name, value in graph_of(config).network.named_parameters()}
    after = run(config)[0].network.named_parameters()
    moved = math.sqrt(sum(float((value.detach() - before[name].detach()).square().sum()) for name, value in after))
    assert 0 < moved <= 1.001e-3


def test_the_last_batch_may_be_ragged_and_every_image_counts() -> None:
    config = recipe(fit={"epochs": 1, "batch_size": 64, "precision": "fp32"}, optimizer={"name": "sgd", "lr": 1e-12})
    # Without BatchNorm and with weights that stay, the epoch's figures are those of one look at all the images.
    plain = Convnet(blocks=(Block(filters=4),), head=Head(units=(8,)))
    config = config.model_copy(update={"model": plain})
    train = stripes(130, 1, noise=400.0)
    graph, result = run(config, train=train)
    loss, accuracy = evaluate(graph, open_source(train, "cpu"))
    assert result.history[0]["train/loss"] == pytest.approx(loss, rel=1e-5)
    assert result.history[0]["train/accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize("images", [17, 33])
def test_batch_normalisation_over_one_position_never_meets_a_batch_of_one_image(images: int) -> None:
    deep = Convnet(
        blocks=(
            Block(filters=4, padding="same", pool_size=8),
            Block(filters=4, padding="same", norm="batch", pool="none"),
        )
    )
    config = recipe().model_copy(update={"model": deep})
    _, result = run(config, train=stripes(images, 1))
    assert len(result.history) == 3


def test_one_image_a_batch_cannot_be_normalised_and_the_remedy_is_told() -> None:
    deep = Convnet(
        blocks=(
            Block(filters=4, padding="same", pool_size=8),
            Block(filters=4, padding="same", norm="batch", pool="none"),
        )
    )
    config = recipe(fit={"epochs": 1, "batch_size": 1, "precision": "fp32"}).model_copy(update={"model": deep})
    with pytest.raises(FitError, match=r"batch of one image .* set fit.batch_size to at least 2"):
        run(config)


def test_a_validation_loss_that_is_not_finite_stops_the_fit_too() -> None:
    config = recipe(optimizer={"name": "sgd", "lr": 1e30}, fit={"epochs": 1, "batch_size": 200, "precision": "fp32"})
    with pytest.raises(FitError, match=r"the validation loss is not finite in epoch 1"):
        run(config)


def test_a_log_that_is_no_terminal_gets_one_plain_line_an_epoch() -> None:
    stream = io.StringIO()
    config = recipe()
    fit(
        graph_of(config),
        stripes(50, 1),
        stripes(20, 2),
        config,
        plan(),
        log=Epochs(),
        progress=Progress(stream=stream),
    )
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all("images/s" in line and "\x1b" not in line for line in lines)


@pytest.mark.measured
def test_the_loop_costs_little_beside_the_bare_step() -> None:
    """The bar is 97% (benchmarks/loop.py); this floor counts set-up and validation of a far shorter fit as well."""
    config = recipe(fit={"epochs": 1, "batch_size": 128, "precision": "fp32", "restore_best": False})
    wide = Convnet(blocks=(Block(filters=32, padding="same", pool="none"), Block(filters=32)), head=Head(units=(32,)))
    config = config.model_copy(update={"model": wide})
    train = stripes(128 * 20, 1)

    def loop() -> float:
        started = time.process_time()
        run(config, train=train)
        return 128 * 20 / (time.process_time() - started)

    def bare() -> float:
        graph = graph_of(config).to(memory_format=torch.channels_last).train()
        optimizer = make_optimizer(config.optimizer, graph.network.parameters())
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        images, labels = torch.from_numpy(train.images[:128]), torch.from_numpy(train.labels[:128])
        started = time.process_time()
        for _ in range(20):
            training_step(graph, images, labels, config, plan(), optimizer, scaler)
        return 128 * 20 / (time.process_time() - started)

    loop(), bare()
    rates: list[tuple[float, float]] = []
    best = 0.0
    while best <= 0.9 and len(rates) < 30:
        rates.append((loop(), bare()))
        if len(rates) >= 3:  # the best of each: what else runs on the machine only ever slows one of them down
            best = max(rate for rate, _ in rates) / max(rate for _, rate in rates)
    assert best > 0.9, rates
