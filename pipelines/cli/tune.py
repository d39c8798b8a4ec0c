"""`stride tune`: the fastest graph that keeps the accuracy, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.console import Json, answer, answer_json, say, table, working


def register(app: typer.Typer) -> None:
    app.command("tune")(tune)


def tune(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A finished run's id.")],
    seconds: Annotated[
        float | None, typer.Option(min=0.1, max=3600, help="How long graphs are timed; the recipe's without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose the graph that is served for a run.

    Compares int8 (fp16 on CUDA), threads and options of onnxruntime on this machine. What saves a tenth of the time
    and keeps the accuracy on the validation images goes into the run's bundle; the table goes into the run in MLflow.

    \b
    Example:
      stride tune 3f2a90c1d4e54b0c8a7b6c5d4e3f2a1b
    """
    with working():
        from pipelines.judging import load_recipe
        from pipelines.tune import HEADER, cells
        from pipelines.tune import tune as choose

        limits = load_recipe(run).tune
        if seconds is not None:
            limits = limits.model_copy(update={"seconds": seconds})
        tuning = choose(run, limits=limits, say=say)
    if as_json:
        answer_json(tuning.to_json())
        return
    answer(table(cells(tuning.rows), HEADER))
    serving = tuning.serving
    answer(f"\n{'served ' if tuning.written else 'chosen '}        {serving.file}: {serving.reason}")
    answer(f"machine        {serving.machine}")
    answer(f"bundle         {tuning.bundle.path if tuning.written else f'as it was: {tuning.note}'}")
    say(f"promote it with: stride promote {run}" if tuning.written else "nothing was written but the table in MLflow")
