"""`stride look`: what the network sees in one's own image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contracts.errors import RequestError
from pipelines.cli.console import Json, answer, answer_json, working


def register(app: typer.Typer) -> None:
    app.command("look")(look)


def look(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image file.")],
    model: Annotated[
        str | None, typer.Option(help="The registered model whose champion looks; the one that is served without it.")
    ] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN", help="A finished run to look with instead.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the files go; $STRIDE_HOME/look/NAME without it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what the network sees in an image.

    Written are the activations of each convolutional stage, Grad-CAM of the predicted class beside the most probable
    classes, and the filters of the first layer.

    \b
    Examples:
      stride look deer.jpg
      stride look deer.jpg --model deer-horse -o seen --json
    """
    if model is not None and run is not None:
        raise RequestError(f"--model {model!r} and --run {run!r} are both given, one was expected; leave one out.")
    with working():
        from pipelines.look import look as look_with

        result = look_with(image, model=model, run_id=run, output=output)
    if as_json:
        answer_json(result.to_json())
        return
    who = f"{result.model} version {result.version}" if result.version else f"run {result.run_id}"
    answer(f"{image}: {result.label} ({who})")
    for label, probability in result.top:
        answer(f"  {probability:.4f}  {label}")
    for file in result.files:
        answer(file)
