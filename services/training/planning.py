"""How the steps of a recipe are computed here, and how long they take: measured on its own network and data."""

from __future__ import annotations

from dataclasses import replace

import torch

from contracts import places
from contracts.recipe import Recipe
from services.training.batches import batch_bounds
from services.training.data import load
from services.training.data.dataset import Dataset
from services.training.device import Plan, choose_device, generators
from services.training.features import may_be_held
from services.training.group import ALONE, Group
from services.training.initial_graph import make_graph
from services.training.measurement import steps_per_second
from services.training.memory import naming_the_batch_size
from services.training.networks import ServedGraph
from services.training.pinning import pin
from services.training.speed import choose_plan
from services.training.trial import make_trial


def estimate(recipe: Recipe) -> float:
    """Seconds that the training steps of a recipe's epochs would take here, from a few timed ones.

    Early stopping makes it less, validation more. Raises as `train` does before anything is fitted.
    """
    recipe = pin(recipe)
    dataset = load(recipe.data)
    with torch.random.fork_rng(devices=generators(choose_device()[0])):
        graph = make_graph(recipe, dataset)
        plan = plan_of(graph, dataset, recipe)
        with plan.computing():
            trial = make_trial(graph, dataset.train, recipe, steps=_steps(dataset, recipe))
            rate = steps_per_second(trial(plan), plan.device, seconds=0.5)
    return _steps(dataset, recipe) / rate


def plan_of(graph: ServedGraph, dataset: Dataset, recipe: Recipe, group: Group = ALONE) -> Plan:
    """Choose how a recipe is computed; see `choose_plan`. Of a group the first worker does, on its share of a batch.

    Raises:
        DeviceError, RecipeError: see `choose_plan`.
        FitError: the device is out of memory.
    """
    steps = _steps(dataset, recipe)
    weights = sum(p.numel() * p.element_size() for p in graph.parameters())
    with naming_the_batch_size(recipe, choose_device()[0]):
        plan = choose_plan(
            recipe.fit.precision,
            trial=make_trial(graph, dataset.train, recipe, steps=steps, workers=group.size),
            key=f"{recipe.digest()}|{dataset.train.images.shape[1:]}|{len(dataset.labels)}",
            cache=places.home() / "cache",
            steps=steps,
            weights=weights,
            workers=group.size,
        )
        # Not remembered with the rest: how much room there is is another matter every time
        return replace(plan, features=may_be_held(graph, recipe, plan, dataset.train, dataset.validation))


def _steps(dataset: Dataset, recipe: Recipe) -> int:
    return len(batch_bounds(len(dataset.train), recipe.fit.batch_size)) * recipe.fit.epochs
