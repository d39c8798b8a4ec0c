"""`stride reproduce`: every recipe's published figure beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.console import Json, answer, answer_json, say, working


def register(app: typer.Typer) -> None:
    app.command("reproduce")(reproduce)


def reproduce(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes; all of them without.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The Markdown file.")] = Path("REPRODUCTION.md"),
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Most seeds of a fit of under ten minutes.")] = 3,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Photographs for the folder recipes; $STRIDE_DATA/hymenoptera without it."),
    ] = None,
    longest: Annotated[float, typer.Option("--longest", min=1, help="Minutes; a longer fit is done as a trial.")] = 60,
    note: Annotated[str, typer.Option("--note", help="A sentence on the conditions, put beside the machine.")] = "",
    as_json: Json = False,
) -> None:
    """Fit the recipes on real data and write REPRODUCTION.md.

    Takes hours on a CPU for all of them; finished runs are taken again, so it can be interrupted. Exits 1 where a
    published figure is missed by more than the spread between seeds.

    \b
    Examples:
      STRIDE_DATA=/data stride reproduce
      stride reproduce mnist fashion --seeds 1
    """
    from contracts import places
    from pipelines import recipe_files

    recipes = [recipe_files.load(name) for name in names or recipe_files.names()]
    photographs = folder or places.data() / "hymenoptera"
    recipes = [
        recipe
        if recipe.data.dataset != "folder"
        else recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(photographs)})})
        for recipe in recipes
    ]
    with working():
        from pipelines import reproduce as reproduction

        rows = reproduction.reproduce(
            recipes, output=output, seeds=tuple(range(seeds)), longest=longest * 60, note=note, say=say
        )
    missed = reproduction.missed(rows)
    if as_json:
        answer_json(
            [
                {
                    "recipe": row.recipe.name,
                    "published": row.published,
                    "trial": row.trial,
                    "missing": row.missing,
                    "test_accuracy": row.mean if row.results else None,
                    "deviation": row.deviation if row.results else None,
                    "reached": row.reached,
                    "runs": [result.run_id for result in row.results],
                }
                for row in rows
            ]
        )
    else:
        answer(f"wrote {output}" + (f"; below the published figure: {', '.join(missed)}" if missed else ""))
    if missed:
        raise typer.Exit(1)
