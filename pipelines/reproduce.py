"""REPRODUCTION.md: every recipe's published figure beside ours, on real data, with the conditions.

A recipe is fitted with three seeds where one fit takes under ten minutes on this machine, with one otherwise. What
would take longer than the caller wants, or lacks its pretrained weights, is fitted in part as a trial, which says that
the recipe runs and nothing about its figure. Finished runs are taken again, so an interrupted call goes on where it
was; the file is written anew after every fit.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from contracts.errors import DataError
from contracts.recipe import Backbone, Recipe, Weights

if TYPE_CHECKING:
    from pipelines.export import Say
    from services.training.train_result import TrainResult

SEEDS: Final = (0, 1, 2)
LONG_S: Final = 600.0
"""A fit that takes longer is done with one seed only."""
LONGEST_S: Final = 3600.0
"""A fit that would take longer is done as a trial."""
TRIAL_IMAGES: Final = 1000
TRIAL_EPOCHS: Final = 5
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
    trial: str | None = None
    """Why only a part was fitted; None where it was the whole."""
    missing: str | None = None
    rival: Recipe | None = None
    """The recipe with a published figure that this one competes with, where it has none of its own."""
    confusion: dict[str, list[int]] | None = None
    """Of the first seed, where a figure is published: by predicted class, the images of each true class."""

    @property
    def published(self) -> float | None:
        return (self.rival or self.recipe).published.test_accuracy

    @property
    def mean(self) -> float:
        return statistics.mean(result.test_accuracy for result in self.results)

    @property
    def deviation(self) -> float | None:
        """Between seeds (sample standard deviation); None with one seed."""
        return statistics.stdev(r.test_accuracy for r in self.results) if len(self.results) > 1 else None

    @property
    def reached(self) -> bool | None:
        """Whether the mean is not below the published figure by more than the spread; above it, for a competitor."""
        if self.published is None or not self.results or self.trial:
            return None
        if self.rival is not None:
            return self.mean > self.published
        return self.mean >= self.published - (self.deviation or 0.0)


def reproduce(
    recipes: Iterable[Recipe],
    *,
    output: Path,
    seeds: Sequence[int] = SEEDS,
    longest: float = LONGEST_S,
    note: str = "",
    progress: bool | None = None,
    say: Say,
) -> list[Row]:
    """Fit recipes on real data and write the table.

    Args:
        recipes: What to fit, in the order of the table.
        output: The Markdown file; replaced after every fit.
        seeds: Seeds of a fit that is short enough for several.
        longest: Seconds; a fit that would take longer here is done as a trial.
        note: What else a reader of the seconds should know, such as what ran beside the fits.
        progress: As `services.training.train.train` takes it.
        say: Gets a line for each fit.

    Raises:
        StrideError: a fit failed. A recipe whose data are not at hand is a row that says so, not an error.
    """
    rows: list[Row] = []

    def write() -> None:
        _write(output, rows, note)

    for recipe in recipes:
        row = Row(recipe)
        rows.append(row)
        try:
            _fit(row, rows, seeds=seeds, longest=longest, progress=progress, say=say, write=write)
        except DataError as error:
            row.missing = error.message
            say(f"{recipe.name}: {error.message}")
        write()
    return rows


def _fit(
    row: Row,
    rows: Sequence[Row],
    *,
    seeds: Sequence[int],
    longest: float,
    progress: bool | None,
    say: Say,
    write: Callable[[], None],
) -> None:
    from services.training.data import load
    from services.training.train import train

    row.recipe, row.trial = _whole_or_trial(row.recipe, rows, longest)
    dataset = load(row.recipe.data)
    row.data = f"{dataset.name}, {len(dataset.train.labels):,} / {len(dataset.test.labels):,}"
    del dataset  # train loads it again; two copies of CIFAR-10 are not needed
    name = row.recipe.name
    if row.trial is not None:
        say(f"{name}: {row.trial}")
        seeds = seeds[:1]
    for number, seed in enumerate(seeds, start=1):
        say(f"{name}: seed {seed} ({number} of at most {len(seeds)})")
        seeded = row.recipe.model_copy(update={"fit": row.recipe.fit.model_copy(update={"seed": seed})})
        row.results.append(train(seeded, progress=progress))
        if row.recipe.published.test_accuracy is not None and row.confusion is None:
            row.confusion = _confusion(row.results[0].run_id)
        write()
        if row.results[0].seconds > LONG_S:
            break


def _whole_or_trial(recipe: Recipe, rows: Sequence[Row], longest: float) -> tuple[Recipe, str | None]:
    """The recipe to fit, and why it is a part where it is one."""
    from services.training.planning import estimate

    model = recipe.model
    size = f"a trial on {TRIAL_IMAGES:,} training images over {TRIAL_EPOCHS} epochs"
    parents = {row.recipe.name: row for row in rows}
    if isinstance(model, Backbone) and isinstance(model.weights, Weights) and model.weights.recipe in parents:
        parent = parents[model.weights.recipe]
        if parent.missing:
            raise DataError(f"recipe '{parent.recipe.name}', whose weights it starts from, was not run.")
        if parent.trial:
            return _part(recipe), f"{size}, since the run of `{parent.recipe.name}` that it starts from was a trial"
    try:
        seconds = estimate(recipe)
    except DataError:
        if not isinstance(model, Backbone) or model.weights != "imagenet":
            raise
        random = recipe.model_copy(update={"model": model.model_copy(update={"weights": "none"})})
        estimate(random)  # where it was not the weights that are missing, this is what says so
        return _part(random), f"{size} with RANDOM weights, which cannot learn much: ImageNet's are not at hand"
    if seconds > longest:
        return _part(recipe), f"{size}: the whole fit would take about {seconds / 60:,.0f} minutes here"
    return recipe, None


def _part(recipe: Recipe) -> Recipe:
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"limit": TRIAL_IMAGES}),
            "fit": recipe.fit.model_copy(update={"epochs": min(recipe.fit.epochs, TRIAL_EPOCHS)}),
        }
    )


def _confusion(run_id: str) -> dict[str, list[int]]:
    import json

    from services.training import runs

    name = "tables/confusion_matrix.json"
    table = json.loads(runs.read_artifacts(run_id, (name,))[name])
    columns, data = table["columns"], list(zip(*table["data"], strict=True))
    return {
        column.removeprefix("predicted "): list(values)
        for column, values in zip(columns, data, strict=True)
        if column.startswith("predicted ")
    }


def table(rows: Sequence[Row], *, machine: str, versions: Mapping[str, str], note: str = "") -> str:
    """The Markdown document."""
    lines = [
        "# Reproduction",
        "",
        "Written by `stride reproduce`; not edited by hand. Test accuracy: mean and standard deviation over the seeds",
        f"(fits of more than {LONG_S / 60:.0f} minutes: one seed). A figure is reached where the mean is not below the",
        "published one by more than the spread between seeds; a recipe without a figure that competes with one that",
        "has it must be above. A trial is a part of a fit: it shows that the recipe runs, not what it reaches.",
        "",
        f"Machine: {machine}. " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        *([note] if note else []),
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
        *(_line(row) for row in rows),
        "",
        "## What each recipe is, and what differs",
        "",
        *(f"- `{row.recipe.name}`: {_note(row)}" for row in rows),
        *(line for row in rows if row.confusion for line in _confusion_table(row.recipe.name, row.confusion)),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    figure = "–" if row.published is None else f"{row.published:.4f}"
    if row.rival is not None:
        figure += f" (`{row.rival.name}`)"
    if not row.results:
        return f"| `{row.recipe.name}` | – | {row.data or '–'} | {figure} | not run | – | – | – | – | – |"
    spread = "" if row.deviation is None else f" ± {row.deviation:.4f}"
    reached = {None: "–", True: "yes", False: "**no**"}[row.reached]
    first = row.results[0]
    ours = f"trial: {row.mean:.4f}" if row.trial else f"{row.mean:.4f}{spread}"
    epochs = sorted({result.epochs for result in row.results})
    span = str(epochs[0]) if len(epochs) == 1 else f"{epochs[0]}-{epochs[-1]}"
    seconds = statistics.median(result.seconds for result in row.results)
    speed = statistics.median(result.images_per_second for result in row.results)
    return (
        f"| `{row.recipe.name}` | {first.parameters:,} ({first.trainable_parameters:,}) | {row.data} | {figure} | "
        f"{ours} | {reached} | {len(row.results)} | {span} | {seconds:,.0f} | {speed:,.0f} |"
    )


def _note(row: Row) -> str:
    parts = [row.recipe.description or "no description."]
    if row.recipe.published.source:
        parts.append(f"Published by: {row.recipe.published.source}")
    if row.recipe.published.differs:
        parts.append(f"What differs: {row.recipe.published.differs}")
    if row.trial:
        parts.append(f"**{row.trial[0].upper()}{row.trial[1:].rstrip('.')}.**")
    if "jpeg" in row.data:
        parts.append("The CIFAR-10 images at hand are JPEG files (lossy), so figures are not strictly comparable.")
    if row.results:
        first = row.results[0]
        parts.append(f"Ran on {first.device} in {first.precision}.")
    if row.missing:
        parts.append(f"Not run: {row.missing}")
    return " ".join(parts)


def _confusion_table(name: str, confusion: Mapping[str, list[int]]) -> list[str]:
    labels = list(confusion)
    return [
        "",
        f"## Confusion matrix of `{name}`, ours",
        "",
        "Test images of each true class (row) by predicted class (column), first seed. The source's own matrix is not",
        "at hand, so it cannot stand beside it.",
        "",
        f"| true class | {' | '.join(labels)} |",
        "|---" * (len(labels) + 1) + "|",
        *(
            f"| {label} | {' | '.join(str(confusion[column][row]) for column in labels)} |"
            for row, label in enumerate(labels)
        ),
    ]


def _write(output: Path, rows: Sequence[Row], note: str) -> None:
    from importlib.metadata import version

    from services.training.device import choose_device

    with_figure = {row.recipe.model_name: row.recipe for row in rows if row.recipe.published.test_accuracy is not None}
    for row in rows:
        row.rival = None if row.recipe.published.test_accuracy else with_figure.get(row.recipe.model_name)
    kind, name, _ = choose_device()
    packages = {package: version(package) for package in ("torch", "torchvision", "onnxruntime-gpu")}
    # The processor's name is followed by this process' threads; the fits may have had others.
    machine = name if kind == "cuda" else f"{name.partition(',')[0]}, {os.cpu_count()} processors"
    versions = {"Python": platform.python_version(), **packages}
    text = table(rows, machine=f"{machine} ({kind})", versions=versions, note=note)
    output.parent.mkdir(parents=True, exist_ok=True)
    staged = output.with_name(f".{output.name}.new")
    staged.write_text(text)
    staged.replace(output)


def missed(rows: Sequence[Row]) -> list[str]:
    """The names of the recipes whose published figure was not reached."""
    return [row.recipe.name for row in rows if row.reached is False]
