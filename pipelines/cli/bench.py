"""`stride bench`: measurements beside the other programs of the field, with bars that they can miss."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import typer

from contracts.errors import RequestError
from pipelines.cli.console import Json, answer, answer_json, say, working

_ROOT: Final = Path(__file__).resolve().parents[2]

bench = typer.Typer(
    name="bench",
    help="Measure Stride beside the other programs of its field, on this machine.\n\n"
    "Each command writes a report, and exits 1 where a bar is missed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def register(app: typer.Typer) -> None:
    app.add_typer(bench)


def _find_benchmarks() -> None:
    """Let benchmarks/ be imported: it is in a checkout, and no part of what is installed.

    Raises:
        RequestError: this is no checkout.
    """
    if not (_ROOT / "benchmarks").is_dir():
        raise RequestError(f"stride bench: {_ROOT} holds no benchmarks/; run it from a checkout of the sources.")
    if str(_ROOT) not in sys.path:
        sys.path.append(str(_ROOT))


class _Bar(Protocol):
    def line(self) -> str: ...


class _Outcome(Protocol):
    @property
    def results(self) -> dict[str, Any]: ...
    @property
    def bars(self) -> Sequence[_Bar]: ...
    @property
    def report(self) -> Path: ...
    @property
    def held(self) -> bool: ...


def _tell(outcome: _Outcome, *, as_json: bool) -> None:
    """Print what was measured; exit 1 where a bar was missed."""
    if as_json:
        answer_json(outcome.results)
    else:
        for bar in outcome.bars:
            answer(bar.line())
    say(f"the report is {outcome.report}")
    if not outcome.held:
        raise typer.Exit(1)


@bench.command("serve")
def serve(
    quick: Annotated[
        bool, typer.Option("--quick", help="One short repeat, under 3 minutes: whether it runs, not how fast.")
    ] = False,
    peers: Annotated[
        str | None,
        typer.Option(help="The other servers, comma-separated; `none` for Stride alone, all of them without it."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=2, max=600, help="For the whole run; 24, or 3 with --quick, without it.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The report's directory; benchmarks/serving, or one of STRIDE_HOME's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the inference service beside other servers.

    The same graph and the same images, one core for the server and one for the client, servers in turns. The others
    are installed on demand into environments of their own. Writes RESULTS.md and results.json.

    \b
    Examples:
      stride bench serve
      stride bench serve --quick --peers fastapi,starlette
    """
    _find_benchmarks()
    with working():
        from benchmarks.serving.options import Options
        from benchmarks.serving.run import run

        outcome = run(Options.of(quick=quick, peers=peers, minutes=minutes, output=output), say=say)
    _tell(outcome, as_json=as_json)


@bench.command("train")
def train(
    quick: Annotated[
        bool, typer.Option("--quick", help="Small parts of the fits, under 3 minutes: whether it runs, not how fast.")
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Every fit to the end of its recipe; about two hours.")] = False,
    recipes: Annotated[str | None, typer.Option(help="Comma-separated: mnist, fashion; both without it.")] = None,
    peers: Annotated[
        str | None,
        typer.Option(help="Comma-separated: keras, lightning, lightning-bf16, bare; `none` for Stride alone."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The report's directory; benchmarks/training, or one of STRIDE_HOME's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the fit beside Keras, Lightning and the bare step.

    The same recipe, data, batch and epochs, two threads each, contenders in turns epoch by epoch; 20 minutes on two
    cores that do nothing else. Keras and Lightning are installed on demand into an environment of their own. Without
    STRIDE_DATA the images are made up. Writes RESULTS.md and results.json.

    \b
    Examples:
      STRIDE_DATA=/data stride bench train
      stride bench train --quick --recipes mnist --peers keras
    """
    _find_benchmarks()
    with working():
        from benchmarks.training.run import Options, run

        outcome = run(Options.of(quick=quick, full=full, recipes=recipes, peers=peers, output=output), say=say)
    _tell(outcome, as_json=as_json)
