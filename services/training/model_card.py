"""The model card: what was fitted, on what, how well it does, and what it is good for, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from contracts.recipe import Backbone, Recipe
from services.training.scores import BINS, CLIP

if TYPE_CHECKING:
    from services.training.data.dataset import Dataset

_ROWS: Final = 30
"""Most classes in the table; beyond, the weakest are shown (MLflow's note holds 8,000 characters)."""
_FILES: Final = 10
"""Most skipped files that are named."""

_RESULTS: Final = {
    "test/accuracy": "accuracy",
    "test/loss": f"cross-entropy (probabilities clipped at {CLIP:g})",
    "test/macro_f1": "F1, mean over the classes",
    "test/macro_precision": "precision, mean over the classes",
    "test/macro_recall": "recall, mean over the classes",
    "test/roc_auc": "area under the ROC curve (more than two classes: one against the rest, mean)",
    "test/average_precision": "area under the precision-recall curve (likewise)",
    "test/calibration_error": f"expected calibration error ({BINS} bins)",
    "test/calibration_error_uncalibrated": "the same before the temperature",
}


def render(
    run_id: str,
    *,
    recipe: Recipe,
    dataset: Dataset,
    results: Mapping[str, float],
    per_class: Mapping[str, Sequence[Any]],
    facts: Mapping[str, str],
) -> str:
    """The card of a run.

    Args:
        run_id: Of the run that it describes.
        recipe: What was fitted.
        dataset: On what.
        results: As `scores.score` gives them.
        per_class: As `scores.per_class` gives it.
        facts: What the fit decided and came to; shown in their order.
    """
    sections = {
        f"# {recipe.name}": _summary(recipe, dataset, results),
        "## Results": _results(recipe, dataset, results, facts),
        "## Each class": _classes(per_class),
        "## Fit": _table(
            ("", ""), [*_choices(recipe), *((key.replace("_", " "), text) for key, text in facts.items())]
        ),
        "## Data": _data(recipe, dataset),
        "## Limits": _limits(recipe, dataset),
        "## Use": _use(run_id, recipe),
    }
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items()) + "\n"


def _summary(recipe: Recipe, dataset: Dataset, results: Mapping[str, float]) -> str:
    height, width, channels = recipe.data.image.shape
    colour = "grayscale" if channels == 1 else "RGB"
    if isinstance(recipe.model, Backbone):
        network = f"torchvision's {recipe.model.name}, started from {_start(recipe.model)}"
    else:
        network = f"a convolutional network of {_count(len(recipe.model.blocks), 'block')}"
    lines = [
        *([recipe.description] if recipe.description else []),
        f"An image classifier for {len(dataset.labels)} classes: {network}, on {colour} images of {width} x {height} "
        f"pixels. It is right on **{results['test/accuracy']:.2%}** of {len(dataset.test.labels):,} test images.",
    ]
    if recipe.published.source:
        lines.append(f"Recipe after: {recipe.published.source}")
    return "\n\n".join(lines)


def _start(model: Backbone) -> str:
    if isinstance(model.weights, str):
        return "ImageNet weights" if model.weights == "imagenet" else "random weights"
    key, value = next((key, value) for key, value in model.weights if value is not None)
    return f"the weights of {key} {value}"


def _results(recipe: Recipe, dataset: Dataset, results: Mapping[str, float], facts: Mapping[str, str]) -> str:
    rows = [(name, f"{results[key]:.4f}") for key, name in _RESULTS.items() if key in results]
    blocks = [_table((f"on {len(dataset.test.labels):,} test images", "value"), rows)]
    published = recipe.published
    beside: list[tuple[str, str, str]] = []
    if published.test_accuracy is not None:
        beside.append(("test accuracy", f"{results['test/accuracy']:.4f}", f"{published.test_accuracy:.4f}"))
    if published.parameters is not None and "parameters" in facts:
        trainable = published.trainable_parameters
        also = f" ({trainable:,} trainable)" if trainable is not None else ""
        beside.append(("parameters", facts["parameters"], f"{published.parameters:,}{also}"))
    if beside:
        blocks.append(_table(("", "this run", "published"), beside))
    return "\n\n".join(blocks)


def _classes(per_class: Mapping[str, Sequence[Any]]) -> str:
    rows = list(zip(*(per_class[key] for key in ("class", "precision", "recall", "f1", "support")), strict=True))
    text = ""
    if len(rows) > _ROWS:
        text = f"The {_ROWS} of {len(rows)} classes with the lowest F1; all of them are in `tables/per_class.json`.\n\n"
        rows = sorted(rows, key=lambda row: float(row[3]))[:_ROWS]
    shown = [
        (name, f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f}", f"{support:,}")
        for name, precision, recall, f1, support in rows
    ]
    return text + _table(("class", "precision", "recall", "F1", "test images"), shown)


def _choices(recipe: Recipe) -> list[tuple[str, str]]:
    optimizer = recipe.optimizer
    early = recipe.fit.early_stopping
    changes = recipe.augmentation.model_dump(exclude_defaults=True)
    stop = f"{early.monitor}, patience {early.patience}" if early is not None else "none"
    return [
        ("optimizer", f"{optimizer.name}, learning rate {optimizer.lr:g}, schedule {recipe.schedule.name}"),
        ("batch size", f"{recipe.fit.batch_size}"),
        ("at most", _count(recipe.fit.epochs, "epoch")),
        ("early stopping", stop),
        ("augmentation", ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in changes.items()) or "none"),
        ("seed", f"{recipe.fit.seed}"),
    ]


def _data(recipe: Recipe, dataset: Dataset) -> str:
    splits = [(name, getattr(dataset, name).labels) for name in ("train", "validation", "test")]
    rows = [(name, f"{len(labels):,}", _balance(labels, len(dataset.labels))) for name, labels in splits]
    where = f" from `{recipe.data.path}`" if recipe.data.path is not None else ""
    lines = [
        f"`{dataset.name}`{where}, fingerprint `{dataset.fingerprint[:16]}` (test split "
        f"`{dataset.test_fingerprint[:16]}`), split with seed {recipe.data.split_seed}.",
        _table(("split", "images", "a class has"), rows),
        _overlap(recipe, dataset),
    ]
    if dataset.contradictions:
        lines.append(f"{_count(dataset.contradictions, 'image')} in two classes at once: one of the labels is wrong.")
    if dataset.skipped:
        named = [f"- `{item.path}`: {item.reason}" for item in dataset.skipped[:_FILES]]
        if len(dataset.skipped) > _FILES:
            named.append(f"- and {len(dataset.skipped) - _FILES:,} more")
        lines.append("\n".join([f"{_count(len(dataset.skipped), 'file')} left out:", "", *named]))
    else:
        lines.append("No file was left out.")
    return "\n\n".join(lines)


def _overlap(recipe: Recipe, dataset: Dataset) -> str:
    if not dataset.overlap:
        return "No image has an identical one in the test split."
    done = "removed before the fit" if recipe.data.on_overlap == "drop" else "kept, so the figures may flatter"
    return f"{_count(dataset.overlap, 'image')} with an identical one in the test split: {done}."


def _limits(recipe: Recipe, dataset: Dataset) -> str:
    height, width, channels = recipe.data.image.shape
    how = {"stretch": "stretched", "pad": "padded", "crop": "cropped"}[recipe.data.image.resize]
    colour = "made grayscale" if channels == 1 else "made RGB"
    return "\n".join(
        [
            f"- It knows the {len(dataset.labels)} classes above and answers with one of them whatever it is shown.",
            f"- The figures hold for images like those of `{dataset.name}`; on others it was not tested.",
            f"- Input: one still image; it is {colour} and {how} to {width} x {height} pixels.",
            "- A probability is no guarantee; the calibration error above says how far it is off on average.",
        ]
    )


def _use(run_id: str, recipe: Recipe) -> str:
    return (
        f"```\nstride ship {recipe.name}   # export, prove, gate and promote; this run ({run_id}) is reused\n"
        "curl -F image=@FILE http://127.0.0.1:3000/v1/predict\n```"
    )


def _balance(labels: Any, classes: int) -> str:
    counts = np.bincount(labels, minlength=classes)
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
