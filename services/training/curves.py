"""Figures of how far the probabilities can be trusted: precision-recall and ROC curves, and the reliability diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.training import scores
from services.training.drawing import BLUE, INK, PALETTE, VERMILION, new_figure, percent, plain, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED: Final = 10
"""Most classes that have a colour and a name of their own; of more, the weakest have."""
_MOST: Final = 100
"""Most classes that are drawn; of more, those with most test images are."""


class _Line(NamedTuple):
    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    area: float


def precision_recall_roc(
    truth: NDArray[np.int64], probabilities: NDArray[np.float32], labels: tuple[str, ...]
) -> Figure:
    """Precision over recall and true over false positive rate, side by side.

    Of two classes the second's; of more, each against the rest. Classes without a test image, and one that all test
    images belong to, have no curves. Where the curves keep to their corner, the axes show that corner.

    Args:
        truth: (n,).
        probabilities: (n, classes).
        labels: The names of the classes.
    """
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    counts = np.bincount(truth, minlength=len(labels))
    shown = [1] if len(labels) == 2 else np.sort(np.argsort(-counts, kind="stable")[:_MOST]).tolist()
    precision_recall, roc = [], []
    for index in shown:
        if 0 < counts[index] < len(truth):
            of_class, answer = truth == index, probabilities[:, index]
            precision, recall, _ = precision_recall_curve(of_class, answer, drop_intermediate=True)
            precision_recall.append(
                _Line(labels[index], recall, precision, float(average_precision_score(of_class, answer)))
            )
            false, true, _ = roc_curve(of_class, answer)
            roc.append(_Line(labels[index], false, true, float(auc(false, true))))
    figure = new_figure(13, 5)
    left, right = figure.subplots(1, 2)
    _lines(left, precision_recall, "AP", step=True)
    _lines(right, roc, "AUC", step=False)
    side = _corner([(1 - line.x, 1 - line.y) for line in precision_recall])
    plain(left, f"Precision and recall{_note(side)}", "recall", "precision")
    left.set(xlim=(1 - side, 1 + side * 0.02), ylim=(1 - side, 1 + side * 0.02))
    side = _corner([(line.x, 1 - line.y) for line in roc])
    plain(right, f"ROC{_note(side)}", "false positive rate", "true positive rate")
    right.set(xlim=(-side * 0.02, side), ylim=(1 - side, 1 + side * 0.02))
    if roc and side == 1:
        right.plot([0, 1], [0, 1], color="#AAAAAA", linestyle=":", linewidth=1.2, zorder=1)
    return figure


def reliability(
    truth: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    uncalibrated: NDArray[np.float32],
    temperature: float,
) -> Figure:
    """Accuracy over confidence in bins, before and after the temperature, and how many images each bin holds.

    Args:
        truth: (n,).
        probabilities: (n, classes), as they are served.
        uncalibrated: (n, classes), at temperature 1.
        temperature: That of `probabilities`.
    """
    figure = new_figure(11, 6)
    upper, lower = figure.subplots(2, 2, sharex=True, gridspec_kw={"height_ratios": (3, 1)})
    titles = ("Before calibration (temperature 1)", f"As served (temperature {temperature:.3g})")
    for above, below, title, answers in zip(upper, lower, titles, (uncalibrated, probabilities), strict=True):
        bins = scores.reliability(truth, answers)
        error = scores.calibration_error(truth, answers)
        _reliability(above, below, bins, f"{title}: ECE {error:.4f}")
    upper[0].legend(frameon=False, fontsize=9, loc="upper left")
    return figure


def _reliability(above: Axes, below: Axes, bins: scores.Reliability, title: str) -> None:
    width = 1 / scores.BINS
    filled = bins.images > 0
    middles = (np.arange(scores.BINS) + 0.5)[filled] * width
    accuracy, confidence, images = bins.accuracy[filled], bins.confidence[filled], bins.images[filled]
    above.bar(middles, accuracy, width * 0.92, color=BLUE, alpha=0.85, label="accuracy")
    ends = middles - width * 0.46, middles + width * 0.46
    above.hlines(confidence, *ends, color=VERMILION, linewidth=2.5, label="mean confidence")
    above.plot([0, 1], [0, 1], color=INK, linestyle=":", linewidth=1.3, label="perfectly calibrated")
    plain(above, title, "", "accuracy")
    above.set(xlim=(0, 1), ylim=(0, 1.02))
    below.bar(middles, images, width * 0.92, color="#999999")
    plain(below, "", "confidence: probability of the predicted class", "images")
    below.set_yscale("log")  # most images lie in the last bin
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.set_ylim(bottom=0.7)


def _lines(axes: Axes, lines: list[_Line], area: str, *, step: bool) -> None:
    # Between two thresholds precision does not run along a line (Davis and Goadrich 2006): steps are drawn.
    style = "steps-post" if step else "default"
    weakest = sorted(lines, key=lambda line: line.area)[:_NAMED]
    named = lines if len(lines) <= _NAMED else weakest
    for line in lines:
        if line not in named:
            axes.plot(line.x, line.y, color="#C8C8C8", linewidth=0.8, drawstyle=style, zorder=1)
    for line, colour in zip(named, PALETTE, strict=False):
        label = f"{short(line.name)}  {_area(line.area)}"
        axes.plot(line.x, line.y, color=colour, linewidth=1.6, drawstyle=style, label=label, zorder=2)
    if not lines:
        axes.text(0.5, 0.5, "one class only: no curve", transform=axes.transAxes, ha="center", color=INK)
        return
    mean = f"{area}, mean {_area(float(np.mean([line.area for line in lines])))}" if len(lines) > 1 else area
    if len(named) < len(lines):
        mean += f"\nthe {_NAMED} weakest of {len(lines)}"
    place: Literal["lower left", "lower right"] = "lower left" if step else "lower right"
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, title=mean, title_fontsize=9, loc=place)


def _area(value: float) -> str:
    return f"{min(value, 0.9999) if value < 1 else value:.4f}"  # what is not perfect must not be written 1.0000


def _corner(losses: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float:
    """The side of the square at the perfect corner that shows what the curves do; 1 shows all.

    Args:
        losses: Of each curve, how far its points are from the corner on either axis.
    """
    # How far the weakest curve stays from the corner, where it comes nearest to it.
    distance = max((float(np.maximum(*loss).min()) for loss in losses), default=1.0)
    return next((side for side in (0.05, 0.1, 0.2) if 3 * distance < side), 1.0)


def _note(side: float) -> str:
    return "" if side == 1 else f" (its corner, {percent(side)} a side)"
