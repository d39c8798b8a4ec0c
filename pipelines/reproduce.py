"""REPRODUCTION.md: every recipe's published figure beside ours, on real data, with the conditions.

A recipe is fitted with three seeds where one fit takes under ten minutes on this machine, with one otherwise. Finished
runs are taken again, so an interrupted call goes on where it was; the file is written anew after every fit.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from contracts.errors import DataError
from contracts.recipe import Recipe

if TYPE_CHECKING:
    from pipelines.export import Say
    from services.training.train import TrainResult

SEEDS: Final = (0, 1, 2)
LONG_S: Final = 600.0
"""A fit that takes longer is done with one seed only."""
_COLUMNS: Final = (
    "recipe",
    "parameters (trained)",
    "data, train / test images",
    "published",
    "ours",
    "reached",
    "seeds",
    "epochs",
    "s a fit",
    "images/s",
)


@dataclass(slots=True)
class Row:
    """A recipe and its fits, or why there are none."""

    recipe: Recipe
    data: str = ""
    """The data set's name and the number of its training and test images."""
    results: list[TrainResult] = field(default_factory=list)
    missing: str | None = None

    @property
    def mean(self) -> float:
        return statistics.mean(result.test_accuracy for result in self.results)

    @property
    def deviation(self) -> float | None:
        """Between seeds (sample standard deviation); None with one seed."""
        return statistics.stdev(r.test_accuracy for r in self.results) if len(self.results) > 1 else None

    @property
    def reached(self) -> bool | None:
        """Whether the mean is not below the published figure by more than the spread between seeds."""
        published = self.recipe.published.test_accuracy
        if published is None or not self.results:
            return None
        return self.mean >= published - (self.deviation or 0.0)


def reproduce(
    recipes: Iterable[Recipe], *, output: Path, seeds: Sequence[int] = SEEDS, progress: bool | None = None, say: Say
) -> list[Row]:
    """Fit recipes on real data and write the table.

    Args:
        recipes: What to fit, in the order of the table.
        output: The Markdown file; replaced after every fit.
        seeds: Seeds of a fit that is short enough for several.
        progress: As `services.training.train.train` takes it.
        say: Gets a line for each fit.

    Raises:
        StrideError: a fit failed. A recipe whose data are not at hand is a row that says so, not an error.
    """
    from services.training.data import load
    from services.training.train import train

    rows: list[Row] = []
    for recipe in recipes:
        row = Row(recipe)
        rows.append(row)
        try:
            dataset = load(recipe.data)
        except DataError as error:
            row.missing = error.message
            say(f"{recipe.name}: {error.message}")
            continue
        row.data = f"{dataset.name}, {len(dataset.train.labels):,} / {len(dataset.test.labels):,}"
        del dataset  # train loads it again; two copies of CIFAR-10 are not needed
        for number, seed in enumerate(seeds, start=1):
            say(f"{recipe.name}: seed {seed} ({number} of at most {len(seeds)})")
            seeded = recipe.model_copy(update={"fit": recipe.fit.model_copy(update={"seed": seed})})
            try:
                row.results.append(train(seeded, progress=progress))
            except DataError as error:  # pretrained weights that are not at hand
                row.missing = error.message
                say(f"{recipe.name}: {error.message}")
                break
            _write(output, rows)
            if row.results[0].seconds > LONG_S:
                break
    _write(output, rows)
    return rows


def table(rows: Sequence[Row], *, machine: str, versions: Mapping[str, str]) -> str:
    """The Markdown document."""
    lines = [
        "# Reproduction",
        "",
        "Written by `stride reproduce`; not edited by hand. Test accuracy: mean and standard deviation over the seeds",
        f"(fits of more than {LONG_S / 60:.0f} minutes: one seed). A figure is reached where the mean is not below the",
        "published one by more than the spread between seeds.",
        "",
        f"Machine: {machine}. " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
        *(_line(row) for row in rows),
        "",
        "## What each recipe is, and what differs",
        "",
        *(f"- `{row.recipe.name}`: {_note(row)}" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    published = row.recipe.published.test_accuracy
    figure = "–" if published is None else f"{published:.4f}"
    if not row.results:
        return f"| `{row.recipe.name}` | – | {row.data or '–'} | {figure} | not run | – | – | – | – | – |"
    spread = "" if row.deviation is None else f" ± {row.deviation:.4f}"
    reached = {None: "–", True: "yes", False: "**no**"}[row.reached]
    first = row.results[0]
    epochs = sorted({result.epochs for result in row.results})
    span = str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]}-{epochs[-1]}"
    seconds = statistics.median(result.seconds for result in row.results)
    speed = statistics.median(result.images_per_second for result in row.results)
    return (
        f"| `{row.recipe.name}` | {first.parameters:,} ({first.trainable_parameters:,}) | {row.data} | {figure} | "
        f"{row.mean:.4f}{spread} | {reached} | {len(row.results)} | {span} | {seconds:,.0f} | {speed:,.0f} |"
    )


def _note(row: Row) -> str:
    parts = [row.recipe.description or "no description."]
    if row.recipe.published.source:
        parts.append(f"Published by: {row.recipe.published.source}")
    if "jpeg" in row.data:
        parts.append("The CIFAR-10 images at hand are JPEG files (lossy), so figures are not strictly comparable.")
    if row.results:
        first = row.results[0]
        parts.append(f"Ran on {first.device} in {first.precision}.")
    if row.missing:
        parts.append(f"Not run: {row.missing}")
    return " ".join(parts)


def _write(output: Path, rows: Sequence[Row]) -> None:
    from importlib.metadata import version

    from services.training.device import choose_device

    kind, name, _ = choose_device()
    packages = {package: version(package) for package in ("torch", "torchvision", "onnxruntime-gpu")}
    text = table(rows, machine=f"{name} ({kind})", versions={"Python": platform.python_version(), **packages})
    output.parent.mkdir(parents=True, exist_ok=True)
    staged = output.with_name(f".{output.name}.new")
    staged.write_text(text)
    staged.replace(output)


def missed(rows: Sequence[Row]) -> list[str]:
    """The names of the recipes whose published figure was not reached."""
    return [row.recipe.name for row in rows if row.reached is False]
