"""The figures of a run. Matplotlib's object API only: no pyplot, so no global state and nothing that must be closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contracts.recipe import Recipe
from services.training.drawing import BLUE, GRID, INK, VERMILION, new_figure, percent, pictures, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUMBERED: Final = 25
"""Most classes whose confusion matrix has a number in every cell."""
_TICKS: Final = 50
"""Most class names along an axis."""


def learning_curves(history: Sequence[Mapping[str, float]], recipe: Recipe) -> Figure:
    """Loss, accuracy and learning rate over the epochs; a dotted line stands at the best epoch."""
    figure = new_figure(13, 4.2)
    epochs = np.arange(1, len(history) + 1)
    marker = "o" if len(history) <= 30 else None
    loss, accuracy, rate = figure.subplots(1, 3)
    for axes, what in ((loss, "loss"), (accuracy, "accuracy")):
        for split, colour in (("train", BLUE), ("validation", VERMILION)):
            values = [row.get(f"{split}/{what}", np.nan) for row in history]
            axes.plot(epochs, values, color=colour, label=split, marker=marker, markersize=3.5, linewidth=1.8)
        _style(axes, what.capitalize(), epochs)
    rates = np.array([row.get("lr", np.nan) for row in history])
    rate.plot(epochs, rates, color=INK, marker=marker, markersize=3.5, linewidth=1.8)
    _style(rate, "Learning rate", epochs)
    if np.nanmin(rates, initial=np.inf) * 20 < np.nanmax(rates, initial=0):
        rate.set_yscale("log")
    else:
        rate.set_ylim(bottom=0, top=1.15 * np.nanmax(rates, initial=1e-12))
        rate.yaxis.set_major_formatter("{x:g}")
    best = _best_epoch(history, recipe)
    for axes in (loss, accuracy):
        axes.axvline(best, color="#888888", linestyle=":", linewidth=1.4, label=f"best epoch ({best})", zorder=1)
        axes.legend(frameon=False, fontsize=9)
    return figure


def confusion_matrix(matrix: NDArray[np.int64], labels: tuple[str, ...]) -> Figure:
    """Counts, and the share of each true class, side by side; readable from 2 to 100 classes."""
    from matplotlib.colors import PowerNorm

    classes = len(labels)
    side = float(np.clip(2.6 + 0.42 * classes, 4.2, 12.5))
    figure = new_figure(2 * side + 0.6, side)
    left, right = figure.subplots(1, 2)
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    # Mistakes are rare: on a linear scale of counts all but the diagonal would look empty.
    most = max(int(matrix.max()), 1)
    counts = left.imshow(matrix, cmap="Blues", norm=PowerNorm(0.5, 0, most))
    shares = right.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for axes, image, title in ((left, counts, "Test images"), (right, shares, "Share of the true class")):
        _class_ticks(axes, labels)
        axes.set_title(title, color=INK, fontsize=12, loc="left")
        if classes > _NUMBERED:
            figure.colorbar(image, ax=axes, shrink=0.8)
    if classes <= _NUMBERED:
        size = float(np.interp(classes, [2, 10, _NUMBERED], [14, 9.5, 6]))
        _numbers(left, matrix, [f"{value:,}" for value in matrix.flat], np.sqrt(matrix / most), size)
        _numbers(right, share, [percent(value) for value in share.flat], share, size)
    return figure


def mistakes(
    images: NDArray[np.uint8],
    truth: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    labels: tuple[str, ...],
    *,
    most: int = 24,
) -> Figure:
    """The wrong predictions that the network was surest of, the surest first.

    Args:
        images: (n, height, width, channels).
        truth: (n,).
        probabilities: (n, classes).
        labels: The names of the classes.
        most: Of how many there is room for.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != truth)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    found = [
        (
            images[index],
            f"true {short(labels[truth[index]], 10)}\n"
            f"said {short(labels[predicted[index]], 10)} ({percent(confidence[index])})",
        )
        for index in shown
    ]
    more = f"; the {len(shown)} that the network was surest of" if len(wrong) > len(shown) else ""
    heading = f"{_mistakes(len(wrong))} on {len(truth):,} test images{more}"
    return pictures([found[start : start + 8] for start in range(0, len(found), 8)], heading, cell=1.5)


def _best_epoch(history: Sequence[Mapping[str, float]], recipe: Recipe) -> int:
    early = recipe.fit.early_stopping
    monitor = early.monitor if early is not None else "validation/accuracy"
    sign = -1.0 if monitor.endswith("loss") else 1.0
    values = [sign * row.get(monitor, -sign * np.inf) for row in history]
    return int(np.argmax(values)) + 1  # the first of equals, as the fit keeps it


def _style(axes: Axes, title: str, epochs: NDArray[np.int64]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, color=INK, fontsize=12, loc="left")
    axes.set_xlabel("epoch", color=INK)
    axes.set_xlim(0.5, max(len(epochs), 1) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def _class_ticks(axes: Axes, labels: tuple[str, ...]) -> None:
    classes = len(labels)
    places = np.arange(0, classes, -(-classes // _TICKS))
    names = [short(labels[place]) for place in places]
    size = float(np.interp(len(places), [2, 10, _TICKS], [11, 9.5, 6]))
    long = max(len(name) for name in names) * len(places) > 60
    turned: dict[str, Any] = {"rotation": 90} if long else {}
    axes.set_xticks(places, names, fontsize=size, **turned)
    axes.set_yticks(places, names, fontsize=size)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(length=0, colors=INK)
    if classes <= _NUMBERED:  # lines between the cells, so that empty ones can be counted too
        axes.set_xticks(np.arange(0.5, classes - 1), minor=True)
        axes.set_yticks(np.arange(0.5, classes - 1), minor=True)
        axes.grid(visible=True, which="minor", color=GRID, linewidth=0.8)
        axes.tick_params(which="minor", length=0)
    axes.spines[:].set_color("#BBBBBB")


def _numbers(axes: Axes, values: NDArray[Any], texts: list[str], shade: NDArray[Any], size: float) -> None:
    columns = values.shape[1]
    for place, text in enumerate(texts):
        row, column = divmod(place, columns)
        if values[row, column] > 0:  # an empty cell says zero by itself
            colour = "white" if shade[row, column] > 0.55 else INK
            axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def _mistakes(number: int) -> str:
    return {0: "No mistake", 1: "1 mistake"}.get(number, f"{number:,} mistakes")
