"""The command line's entry: puts the commands together, and turns errors into one sentence and an exit code.

Exit codes: 0 done, 1 failed, 2 refused (bad usage, or the gate said no), 130 interrupted, 143 told to end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import typer

from contracts.errors import StrideError
from pipelines.cli import (
    bench,
    challenge,
    jobs,
    look,
    machine,
    models,
    recipes,
    reproduction,
    servers,
    sweep,
    sync,
    tune,
)
from pipelines.cli.console import say

app = typer.Typer(
    name="stride",
    help="Labelled images to a gated, hot-swapped CNN classifier that answers over HTTP.\n\n"
    "Begin with:  stride ship digits && stride serve",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help reads the same on a terminal and in a log, and rich costs 0.1 s
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (recipes, models, sweep, tune, challenge, servers, jobs, look, reproduction, bench, sync, machine):
    module.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run `stride` with the arguments of the process, or with those given; always ends in SystemExit."""
    sys.exit(guard(lambda: app(args=None if arguments is None else list(arguments), prog_name="stride")))


def guard(run: Callable[[], object]) -> int:
    """Call `run`; what it raises becomes one sentence on standard error and the exit code that is returned."""
    # A bar for every file that MLflow copies says nothing; who wants them sets it.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        run()
    except StrideError as error:
        if _debug():
            raise
        say(f"error: {error.message}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if _debug():
            raise
        reason = " ".join(str(error).split())[:500]
        say(f"error: unexpected {type(error).__name__}: {reason}; STRIDE_DEBUG=1 shows where, please report it.")
        return 1
    return 0


def _debug() -> bool:
    return os.environ.get("STRIDE_DEBUG", "0") not in ("", "0")
