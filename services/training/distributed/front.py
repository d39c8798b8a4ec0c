"""How a fit is run: by this process, by several that it starts, or as one of several that somebody else has started."""

from __future__ import annotations

import os
from collections.abc import Mapping

from contracts.errors import RecipeError
from contracts.recipe import Recipe
from services.training.distributed.place import Place
from services.training.train import train
from services.training.train_result import TrainResult


def fit_recipe(
    recipe: Recipe,
    *,
    workers: int | None = None,
    force: bool = False,
    progress: bool | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainResult | None:
    """Fit a recipe with so many workers; see `train` for the rest.

    With RANK and WORLD_SIZE in the environment, as torchrun sets them, this process is one worker of a group. Otherwise
    more than one worker are processes of this machine or, where RAY_ADDRESS names a Ray cluster, of that one.

    Args:
        recipe: What to fit.
        workers: How many; None is one, or those that this process is one of.
        force: As `train` takes it.
        progress: Likewise.
        tags: Likewise.

    Returns:
        The result; None in a worker that is not the first.

    Raises:
        RecipeError: a number of workers that cannot be.
    """
    if workers is not None and workers < 1:
        raise RecipeError(f"--workers is {workers}, a whole number from 1 was expected; leave it out for one.")
    place = Place.from_environment()
    size = place.size if place is not None else workers or 1
    if workers is not None and workers != size:
        raise RecipeError(f"--workers is {workers}, but WORLD_SIZE is {size}; leave it out where torchrun starts them.")
    if size > recipe.fit.batch_size:
        raise RecipeError(
            f"--workers is {size}, but a batch of recipe '{recipe.name}' has {recipe.fit.batch_size} images and each "
            f"worker takes a part of it; give fewer workers, or set fit.batch_size to {size} or more."
        )
    # What follows imports torch.distributed, and a cluster's client: one process needs neither
    if place is not None:
        from services.training.distributed.start import work

        return work(recipe, place, force=force, progress=progress, tags=tags)
    if size == 1:
        return train(recipe, force=force, progress=progress, tags=tags)
    if address := os.environ.get("RAY_ADDRESS"):
        from services.training.distributed import ray_train

        return ray_train.launch(recipe, workers=size, address=address, force=force, progress=progress, tags=tags)
    from services.training.distributed.launch import launch

    return launch(recipe, workers=size, force=force, progress=progress, tags=tags)
