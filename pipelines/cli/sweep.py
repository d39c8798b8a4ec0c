"""`stride sweep`: many fits of one recipe, side by side under one parent run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipelines.cli.console import Json, Overrides, RecipeName, answer, answer_json, say, table, working


def register(app: typer.Typer) -> None:
    app.command("sweep")(sweep)


def sweep(
    recipe: RecipeName,
    space: Annotated[
        list[str],
        typer.Option(
            "--space",
            metavar="KEY=KIND(…)",
            help="choice(a, b), uniform(low, high), loguniform, randint (both ends) or lograndint; may be repeated.",
        ),
    ],
    trials: Annotated[int, typer.Option("--trials", min=1, help="How many fits.")] = 20,
    overrides: Overrides = None,
    metric: Annotated[
        str, typer.Option("--metric", help="validation/accuracy or validation/loss.")
    ] = "validation/accuracy",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the search.")] = 0,
    grace: Annotated[
        int | None, typer.Option("--grace", min=1, help="Epochs before a trial may be stopped; a fifth without it.")
    ] = None,
    cpus: Annotated[float, typer.Option("--cpus", min=0.1, help="Of each trial.")] = 1,
    gpus: Annotated[
        float | None,
        typer.Option("--gpus", min=0, help="Of each trial, such as 0.25; 1 where there are any."),
    ] = None,
    parallel: Annotated[int | None, typer.Option("--parallel", min=1, help="Most trials at once.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Refuse where there is nothing to go on with; going on needs no option.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin the same sweep anew.")] = False,
    as_json: Json = False,
) -> None:
    """Fit a recipe with many values, and find the best ones.

    Optuna chooses the values, ASHA stops what falls behind, on Ray Tune: embedded, or on the cluster at RAY_ADDRESS.
    The fits are children of one run in MLflow, which holds the summary. Killed, the same command goes on where it was.

    \b
    Examples:
      stride sweep digits --trials 12 --space 'optimizer.lr=loguniform(1e-4, 1e-1)'
      stride sweep mnist --space 'fit.batch_size=choice(32, 64)' --space 'model.head.dropout=uniform(0, 0.5)'
    """
    if force and resume:
        raise typer.BadParameter("--force begins anew and --resume goes on; keep one of them.")
    with working():
        from pipelines.sweeps.run import Options
        from pipelines.sweeps.run import sweep as run

        options = Options(
            recipe=recipe,
            overrides=tuple(overrides or ()),
            space=tuple(space),
            trials=trials,
            metric=metric,
            seed=seed,
            grace=grace,
            cpus=cpus,
            gpus=gpus,
            parallel=parallel,
        )
        result = run(options, say=say, force=force, resume=resume)
    if as_json:
        answer_json(result.to_json())
        return
    keys = list(result.trials[0].values) if result.trials else []
    rows = [
        (
            trial.number,
            trial.state,
            trial.best(options.mode),
            len(trial.epochs),
            *map(json.dumps, trial.values.values()),
        )
        for trial in result.trials
    ]
    answer(table(rows, ("trial", "state", metric, "epochs", *keys)))
    if result.importance:
        answer("\nimportance     " + ", ".join(f"{key} {share:.2f}" for key, share in result.importance.items()))
    answer(f"sweep          {result.run_id}" + (" (taken from an earlier one)" if result.reused else ""))
    if result.best is None:
        answer("best           none: no trial came to its end")
        return
    answer(f"best           trial {result.best.number}, run {result.best.run_id}, {metric} {result.best.value:.4f}")
    say(f"promote it with: stride promote {result.best.run_id}")
