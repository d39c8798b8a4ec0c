from __future__ import annotations

import io
import math
import statistics
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
from services.training.evaluate import evaluate, to_device
from services.training.fit import FitResult, fit, training_step
from services.training.networks import ServedGraph, build
from services.training.optimizers import make_optimizer
from services.training.progress import Progress

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
    return Plan(
        device="cpu",
        device_name="cpu",
        device_reason="test",
        precision=precision,  # type: ignore[arg-type]
        channels_last=True,
        precision_reason="test",
        threads=torch.get_num_threads(),
    )


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
    _, accuracy = evaluate(graph, to_device(test.images, "cpu"), to_device(test.labels, "cpu"))
    assert accuracy > 0.95
    assert result.best["validation/accuracy"] > 0.95


def test_two_fits_from_one_seed_end_in_the_same_weights() -> None:
    config = recipe(dropout=0.3, augmentation={"rotation": 10, "flip_horizontal": True})
    first, second = run(config)[0].state_dict(), run(config)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = run(config.model_copy(update={"fit": config.fit.model_copy(update={"seed": 1})}))[0].state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


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
    loss, accuracy = evaluate(graph, to_device(held_out.images, "cpu"), to_device(held_out.labels, "cpu"))
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
    _, result = run(config, train=stripes(130, 1))
    # with weights that stay, the accuracy over the epoch must be a count over all 130 images
    assert result.history[0]["train/accuracy"] * 130 == pytest.approx(
        round(result.history[0]["train/accuracy"] * 130), abs=1e-4
    )


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
    ratios = [loop() / bare() for _ in range(7)]
    assert statistics.median(ratios) > 0.9, ratios
