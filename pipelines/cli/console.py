"""What all commands share: options, answers on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe's name (see `stride recipes`) or a YAML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. optimizer.lr=3e-4; may be repeated."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Force = Annotated[
    bool, typer.Option("--force", help="Fit from the beginning, even where the same run is finished or was stopped.")
]


def say(text: str) -> None:
    """Tell the user something that is no answer: progress, hints, warnings."""
    typer.echo(text, err=True)


def answer(text: str) -> None:
    """The command's answer, for the user to read or a program to take."""
    typer.echo(text)


def answer_json(value: Any) -> None:
    """The command's answer as JSON; NaN and infinities, which JSON does not have, become null."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Columns of equal width; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    right = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(header))]
    widths = [max(len(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    lines = []
    for line in [list(header), *cells]:
        pairs = zip(line, widths, right, strict=True)
        lines.append("  ".join(cell.rjust(width) if to else cell.ljust(width) for cell, width, to in pairs).rstrip())
    return "\n".join(lines)


@contextlib.contextmanager
def working() -> Iterator[None]:
    """While libraries work, what they print goes to standard error: standard output holds the answer alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 10 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))) else value  # noqa: PLR0124 - NaN
