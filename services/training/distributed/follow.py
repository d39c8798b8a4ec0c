"""The part of a worker that is not the first: it fits what the first one tells it, and logs and keeps nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from contracts.errors import FitError
from contracts.recipe import Recipe, parse
from services.training.code_version import code_version
from services.training.data import load
from services.training.data.dataset import Dataset
from services.training.device import Plan, generators
from services.training.fit import fit
from services.training.networks import ServedGraph, build
from services.training.progress import Progress

if TYPE_CHECKING:
    from services.training.distributed.workers import Workers


def invitation(recipe: Recipe, dataset: Dataset) -> dict[str, Any]:
    """What the first worker tells the others once it has read the data: what to fit, and how to know that they can."""
    return {"recipe": recipe.model_dump(mode="json"), **_identity(dataset)}


def follow(group: Workers) -> None:
    """Fit with the first worker, from its invitation on, unless it finds that there is nothing to fit.

    Raises:
        DataError, RecipeError, FitError: this worker cannot take part; other data and other code among the reasons.
        WorkerLost: another worker is gone.
    """
    told = group.told()
    recipe = parse(told["recipe"], name=told["recipe"]["name"])
    dataset = load(recipe.data)
    for what, own in _identity(dataset).items():
        if own != told[what]:
            raise FitError(
                f"recipe '{recipe.name}': the {what.replace('_', ' ')} of worker {group.rank} is {own}, {told[what]} "
                "was expected as at the first one; give all machines the same code and the same data."
            )
    plan_told = group.told()["plan"]
    if plan_told is None:
        return
    plan = group.plan(Plan.from_json(plan_told))
    with torch.random.fork_rng(devices=generators(plan.device)):
        network = build(recipe.model, image=recipe.data.image, classes=len(dataset.labels))
        channels = recipe.data.image.channels
        # Its weights and its normalisation come from the first worker, with the rest of the state
        graph = ServedGraph(network, output=recipe.output, mean=(0.0,) * channels, std=(1.0,) * channels)
        with plan.computing():
            fit(
                graph, dataset.train, dataset.validation, recipe, plan, log=_Unlogged(), progress=_Unseen(), group=group
            )


def _identity(dataset: Dataset) -> dict[str, str]:
    """What must be the same at every worker."""
    return {"data_fingerprint": dataset.fingerprint, "code_version": code_version()}


class _Unlogged:
    """Logs nothing."""

    def epoch(self, step: int, metrics: dict[str, float]) -> None: ...


class _Unseen(Progress):
    """Shows nothing, and looks at nothing: a loss that is not finite is the first worker's to find within an epoch."""

    def __init__(self) -> None:
        super().__init__(show=False)

    def due(self) -> bool:
        return False
