"""python -m pipelines.first_champion: ship a first model where the registry has none, so that a new stack serves one.

    python -m pipelines.first_champion --recipe digits                 # about a minute on two cores
    python -m pipelines.first_champion --images /images --model pets   # one's own folder of class/*.jpg

Empty values count as not given (they come from a compose file). A model that has a champion is left alone, whatever
recipe made it: the second `docker compose up` fits nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import AlreadyFitting, DataError, FitError
from pipelines import recipe_files, registry
from pipelines.cli.console import say, working
from pipelines.cli.main import guard

if TYPE_CHECKING:
    from contracts.recipe import Recipe

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def chosen(recipe: str, images: str, model: str) -> Recipe:
    """The recipe that is shipped: `digits`; with `images` the recipe `folder` on that directory, as model `model`.

    Raises:
        DataError: `images` is no directory, or holds nothing.
        RecipeError: no such recipe.
    """
    if not images:
        return recipe_files.load(recipe or "digits")
    path = Path(images)
    if not path.is_dir() or not any(path.iterdir()):
        raise DataError(f"images {images}: expected one directory a class in it, found nothing; see STRIDE_IMAGES.")
    return recipe_files.load(recipe or "folder", [f"data.path={images}", f"model_name={model or 'images'}"])


@app.command()
def first_champion(
    recipe: Annotated[str, typer.Option(help="A recipe's name; digits, or folder with --images.")] = "",
    images: Annotated[str, typer.Option(help="A directory with one directory of images a class.")] = "",
    model: Annotated[str, typer.Option(help="What the model of --images is called.")] = "",
) -> None:
    """Ship a recipe unless its model has a champion. Exits 2 where the gate says no."""
    wanted = chosen(recipe, images, model)
    with working():
        champion = registry.champion(registry.connect(), wanted.model_name)
        if champion is not None:
            say(f"{champion.who} is the champion; nothing is fitted")
            return
        from pipelines.ship import ship

        try:
            result = ship(wanted, say=say)
        except AlreadyFitting as error:  # worth another try, unlike all else that exits 2
            raise FitError(str(error)) from error
    say(f"{result.verdict}: {result.model} version {result.version or '-'}, test accuracy {result.test_accuracy:.4f}")
    for reason in result.reasons:
        say(f"  {reason}")
    if result.exit_code:
        raise typer.Exit(result.exit_code)


if __name__ == "__main__":
    sys.exit(guard(app))
