from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from contracts.recipe import Recipe
from services.training.data.dataset import Dataset
from services.training.networks import ServedGraph, build
from services.training.trial import make_trial
from tests.services.training.plans import cpu_plan

PLAN = cpu_plan()


def graph_of(recipe: Recipe) -> ServedGraph:
    torch.manual_seed(0)
    network = build(recipe.model, image=recipe.data.image, classes=3)
    return ServedGraph(network, output=recipe.output, mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"fit": {"ema": 0.9, "batch_size": 4}},
        {"augmentation": {"rotation": 10, "mixup": 1.0}},
        {"schedule": {"name": "one_cycle"}, "optimizer": {"lr": 0.1}},
    ],
)
def test_trial_steps_begin_anew_for_each_plan_and_leave_the_graph_as_it_is(
    parts: dict[str, Any], make_recipe: Any, tiny_dataset: Dataset
) -> None:
    recipe = make_recipe(**parts)
    graph = graph_of(recipe)
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    images = tiny_dataset.train.images.copy()
    trial = make_trial(graph, tiny_dataset.train, recipe, steps=100)
    losses = []
    for plan in (PLAN, replace(PLAN, channels_last=False)):
        step = trial(plan)
        torch.manual_seed(0)
        losses.append([float(step()) for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] != losses[0][-1]
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())
    assert (tiny_dataset.train.images == images).all()


def test_trial_steps_take_the_rates_at_which_the_fit_begins(make_recipe: Any, tiny_dataset: Dataset) -> None:
    """A trial at the peak of a one-cycle schedule would diverge in every precision, each in its own way."""
    recipe = make_recipe(schedule={"name": "one_cycle"}, optimizer={"name": "sgd", "lr": 1e3}, fit={"batch_size": 4})
    step = make_trial(graph_of(recipe), tiny_dataset.train, recipe, steps=10_000_000)(PLAN)
    flat = recipe.model_copy(update={"schedule": recipe.schedule.model_copy(update={"name": "constant"})})
    peak = make_trial(graph_of(recipe), tiny_dataset.train, flat, steps=10_000_000)(PLAN)
    first, high = ([float(take()) for _ in range(2)] for take in (step, peak))
    assert first[0] == high[0]
    assert abs(first[1] - first[0]) < abs(high[1] - high[0])
