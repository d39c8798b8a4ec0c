"""`stride sync`: what the tracking server did not take while it was away."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.console import Json, answer, answer_json, say, table, working


def register(app: typer.Typer) -> None:
    app.command("sync")(sync)


def sync(
    discard: Annotated[
        list[str] | None,
        typer.Option("--discard", metavar="RUN", help="Give up what is kept of this run instead; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Send runs to MLflow that it does not have all of.

    A fit does not wait for its tracking server: what it logs is kept under $STRIDE_HOME/journal until the server has
    taken it. This sends what was left, closes the runs as they ended, and deletes what was kept of them. It may be
    given twice, and beside running fits. Exits 1 where something stays.

    \b
    Examples:
      stride sync
      stride sync --json
      stride sync --discard 3f2a90c1d4e54b0c8a7b6c5d4e3f2a1b
    """
    with working():
        from services.training import journal_sync

        results = [journal_sync.discard(run) for run in discard] if discard else journal_sync.sync(say=say)
    if as_json:
        answer_json({"journals": [result.to_json() for result in results]})
    elif not results:
        answer("MLflow has everything: no run is waiting to be sent")
    else:
        rows = [(result.run_id, result.name, result.state, result.sent, result.left) for result in results]
        answer(table(rows, ("run", "name", "state", "sent", "left")))
        for problem in dict.fromkeys(result.problem for result in results if result.problem):
            say(problem)
    if any(result.state in ("kept", "refused") for result in results):
        raise typer.Exit(1)
