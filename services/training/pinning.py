"""A recipe as its run keeps it: without names that mean another thing tomorrow, or from another directory."""

from __future__ import annotations

from pathlib import Path

from contracts.errors import DataError
from contracts.recipe import Recipe
from services.training import weights


def pin(recipe: Recipe) -> Recipe:
    """The recipe as its run keeps it: what its names mean here and now, so that they mean the same for its export.

    A model's champion may be another one tomorrow, and a relative path lead elsewhere from another directory. Two
    recipes that name one folder in two ways are one recipe from here on.

    Raises:
        DataError, RegistryError: see `weights.pin`; DataError also for a path of no such user, or of links in a circle.
    """
    recipe = weights.pin(recipe)
    if recipe.data.path is None:
        return recipe
    try:
        path = Path(recipe.data.path).expanduser().resolve()
    except RuntimeError as error:
        raise DataError(
            f"data.path {recipe.data.path!r} leads nowhere ({error}); give the path of a directory."
        ) from error
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(path)})})
