"""A sweep in pictures: parallel coordinates, importance, and the best value over the trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.sweeps.ledger import Mode, Trial
from pipelines.sweeps.space import Dimension, Space
from services.training.drawing import BLUE, GRID, INK, VERMILION, new_figure, plain, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def parallel_coordinates(trials: Sequence[Trial], space: Space, *, metric: str, mode: Mode) -> Figure:
    """One line a trial over the axes of the space and the metric; the better, the darker, the best one in red.

    Trials that were stopped are dashed and end at their best value.
    """
    from matplotlib import colormaps

    shown = sorted(_known(trials, mode), key=lambda known: known[1], reverse=mode == "min")
    figure = new_figure(max(6.0, 1.9 * (len(space) + 1)), 4.8)
    axes = figure.subplots()
    results = [result for _, result in shown]
    low, high = (min(results), max(results)) if results else (0.0, 1.0)
    span = (high - low) or 1.0
    for place, (trial, result) in enumerate(shown):
        heights = [_height(space[key], trial.values[key], trial.drawn[key]) for key in space]
        last = place == len(shown) - 1
        goodness = (result - low) / span if mode == "max" else (high - result) / span
        axes.plot(
            range(len(space) + 1),
            [*heights, (result - low) / span],
            color=VERMILION if last else colormaps["Blues"](0.25 + 0.65 * goodness),
            linewidth=2.4 if last else 1.2,
            linestyle="-" if trial.state == "finished" else "--",
            zorder=3 if last else 2,
            label=f"best: trial {trial.number}" if last else None,
        )
    _axes(axes, space, low, high, metric)
    if shown:
        axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.12))
    return figure


def importance(shares: Mapping[str, float]) -> Figure:
    """A bar a key: its share of the variance of the result."""
    figure = new_figure(7.5, max(2.4, 0.5 * len(shares) + 1.6))
    axes = figure.subplots()
    keys = list(shares)[::-1]
    axes.barh([short(key, 28) for key in keys], [shares[key] for key in keys], color=BLUE)
    plain(axes, "Importance (share of the variance)", "", "")
    axes.set_xlim(0, 1)
    return figure


def history(trials: Sequence[Trial], *, metric: str, mode: Mode) -> Figure:
    """Each trial's best value, in the order in which the trials began, and the best so far."""
    figure = new_figure(7.5, 4.2)
    axes = figure.subplots()
    known = _known(trials, mode)
    numbers, results = [trial.number for trial, _ in known], [result for _, result in known]
    for state, marker, colour in (("finished", "o", BLUE), ("stopped", "x", "#888888")):
        chosen = [place for place, (trial, _) in enumerate(known) if trial.state == state]
        axes.scatter(
            [numbers[place] for place in chosen],
            [results[place] for place in chosen],
            marker=marker,
            color=colour,
            label=state,
            zorder=3,
        )
    if results:
        best = (np.maximum if mode == "max" else np.minimum).accumulate(results)
        axes.step(numbers, best, where="post", color=VERMILION, label="best so far")
        axes.legend(frameon=False, fontsize=9)
    plain(axes, f"Best {metric} of each trial", "trial", metric)
    return figure


def _known(trials: Sequence[Trial], mode: Mode) -> list[tuple[Trial, float]]:
    """The trials that came to something, and to what."""
    return [(trial, best) for trial in trials if (best := trial.best(mode)) is not None]


def _height(dimension: Dimension, value: Any, drawn: Any) -> float:
    """Where on its axis a value stands, 0-1."""
    if dimension.kind == "choice":
        texts = [json.dumps(choice) for choice in dimension.choices]
        return texts.index(drawn) / (len(texts) - 1)
    low, high, at = dimension.low, dimension.high, float(value)
    if dimension.log:
        low, high, at = np.log(low), np.log(high), np.log(at)
    return float((at - low) / (high - low))


def _axes(axes: Any, space: Space, low: float, high: float, metric: str) -> None:
    for place, dimension in enumerate(space.values()):
        axes.axvline(place, color=GRID, zorder=1)
        if dimension.kind == "choice":
            texts = [json.dumps(choice).strip('"') for choice in dimension.choices]
            ticks = [(index / (len(texts) - 1), text) for index, text in enumerate(texts)]
        else:
            ticks = [(0.0, f"{dimension.low:g}"), (1.0, f"{dimension.high:g}")]
        for height, text in ticks:
            axes.annotate(
                short(text), (place, height), xytext=(4, 2), textcoords="offset points", fontsize=8, color=INK
            )
    axes.axvline(len(space), color=GRID, zorder=1)
    for height, value in ((0.0, low), (1.0, high)):
        axes.annotate(
            f"{value:.4g}", (len(space), height), xytext=(4, 2), textcoords="offset points", fontsize=8, color=INK
        )
    axes.set_xticks(range(len(space) + 1), [short(key, 22) for key in space] + [metric], fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(space) + 0.35)
    axes.set_ylim(-0.05, 1.1)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    axes.set_title("Every trial, one line", color=INK, fontsize=12, loc="left")
