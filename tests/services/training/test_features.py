from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from contracts.recipe import Recipe, parse
from services.training.data.dataset import Split
from services.training.device import Plan
from services.training.features import may_be_held
from services.training.fit import FitResult, fit
from services.training.networks import ServedGraph, build
from services.training.progress import Progress
from tests.services.training.plans import cpu_plan

PLAN = cpu_plan()


class Nowhere:
    def epoch(self, step: int, metrics: dict[str, float]) -> None: ...


def split(n: int, seed: int) -> Split:
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    images = random.integers(0, 120, (n, 33, 33, 3)) + 100 * labels[:, None, None, None]
    return Split(images=images.astype(np.uint8), labels=labels.astype(np.int64))


def recipe(name: str = "resnet18", **parts: Any) -> Recipe:
    content: dict[str, Any] = {
        "data": {"dataset": "cifar10", "image": {"height": 33, "width": 33, "channels": 3}, "classes": ["a", "b"]},
        "model": {"kind": "backbone", "name": name, "frozen": ["base"], "head": {"units": [8], "dropout": 0.2}},
        "optimizer": {"lr": 0.01},
        "fit": {"epochs": 3, "batch_size": 8, "precision": "fp32"},
    }
    return parse({**content, **parts}, name="held")


def graph_of(config: Recipe) -> ServedGraph:
    torch.manual_seed(0)
    network = build(config.model, image=config.data.image, classes=2)
    return ServedGraph(network, output=config.output, mean=(0.4,) * 3, std=(0.3,) * 3)


def run(config: Recipe, plan: Plan, watched: list[torch.Tensor] | None = None) -> tuple[ServedGraph, FitResult]:
    graph = graph_of(config)
    probe = torch.from_numpy(split(4, 7).images)

    def watch(_: int, seen: ServedGraph) -> None:
        if watched is not None:
            with torch.no_grad():
                watched.append(seen.eval()(probe))

    torch.manual_seed(1)
    result = fit(
        graph, split(20, 1), split(8, 2), config, plan, log=Nowhere(), progress=Progress(show=False), watch=watch
    )
    return graph, result


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1"])
def test_a_fit_on_features_ends_like_one_on_images_within_rounding(name: str, ema: float | None) -> None:
    config = recipe(name, fit={"epochs": 3, "batch_size": 8, "precision": "fp32", "ema": ema})
    plan = replace(PLAN, features=may_be_held(graph_of(config), config, PLAN, split(20, 1), split(8, 2)))
    assert plan.features_once, plan.features
    seen: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    (images, by_images), (features, by_features) = run(config, PLAN, seen[0]), run(config, plan, seen[1])
    for metrics, wanted in zip(by_features.history, by_images.history, strict=True):
        for key in ("train/loss", "validation/loss", "train/accuracy", "validation/accuracy"):
            assert metrics[key] == pytest.approx(wanted[key], abs=2e-4), key
    state, wanted_state = features.state_dict(), images.state_dict()
    assert list(state) == list(wanted_state)
    for name_ in state:
        torch.testing.assert_close(state[name_], wanted_state[name_], atol=1e-3, rtol=1e-3, msg=name_)
    # Who watches sees the whole network, with the weights of that epoch
    for found, wanted_answers in zip(seen[1], seen[0], strict=True):
        torch.testing.assert_close(found, wanted_answers, atol=1e-3, rtol=1e-3)
    assert not features.training


def test_the_base_stays_as_it_was() -> None:
    config = recipe()
    before = {name: value.clone() for name, value in graph_of(config).state_dict().items()}
    plan = replace(PLAN, features="yes: a test")
    after = run(config, plan)[0].state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("network.fc.") for name in moved)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"augmentation": {"flip_horizontal": True}}, "augmentation"),
        ({"augmentation": {"mixup": 0.2}}, "augmentation"),
        ({"model": {"kind": "backbone", "name": "resnet18"}}, "the base is fitted, too"),
        (
            {"model": {"kind": "backbone", "name": "resnet18", "trainable_from": "layer4"}},
            "the base is fitted, too",
        ),
        # Its own classifier has a dropout before the one layer that is fitted
        ({"model": {"kind": "backbone", "name": "squeezenet1_1", "frozen": ["base"]}}, "classifier.0 of the base"),
    ],
)
def test_features_that_change_are_not_computed_once(parts: dict[str, Any], reason: str) -> None:
    config = recipe(**parts)
    answer = may_be_held(graph_of(config), config, PLAN, split(4, 0))
    assert answer.startswith("no: ")
    assert reason in answer


def test_features_without_room_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_RESIDENT", "1KB")
    answer = may_be_held(graph_of(recipe()), recipe(), PLAN, split(4, 0))
    assert answer.startswith("no: they would take")


def test_a_network_that_goes_on_behind_its_head_is_fitted_whole() -> None:
    config = recipe()
    graph = graph_of(config)
    plain = graph.network.forward
    graph.network.forward = lambda images: 2 * plain(images)
    assert may_be_held(graph, config, PLAN, split(4, 0)) == "no: the head is not the last part of the network"
    assert isinstance(graph.network, nn.Module)
