"""Figures of the training data: samples with their labels, and what augmentation makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.recipe import Augmentation
from services.training.augment import augment, mix
from services.training.drawing import INK, new_figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SAMPLES: Final = 32
_ROWS: Final = 5
_VARIANTS: Final = 7


def samples(images: NDArray[np.uint8], truth: NDArray[np.int64], labels: tuple[str, ...]) -> Figure:
    """Training images with their labels, in turn from every class; the same ones for the same data.

    Args:
        images: uint8 (n, height, width, channels).
        truth: (n,).
        labels: The names of the classes.
    """
    chosen = _in_turn(truth, _SAMPLES)
    columns = max(min(len(chosen), 8), 1)
    rows = -(-len(chosen) // columns)
    figure = new_figure(1.35 * columns, 1.4 * rows + 0.45)
    figure.suptitle(f"{len(chosen)} of {len(truth):,} training images", color=INK, fontsize=12)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, chosen, strict=False):
        _show(axes, images[index])
        axes.set_title(short(labels[truth[index]]), fontsize=8, color=INK, pad=3)
    return figure


def augmented(
    images: NDArray[np.uint8], truth: NDArray[np.int64], labels: tuple[str, ...], config: Augmentation
) -> Figure:
    """Training images, and beside each what the recipe's augmentation makes of it, drawn again and again.

    Args:
        images: uint8 (n, height, width, channels).
        truth: (n,).
        labels: The names of the classes.
        config: The recipe's augmentation; where it changes nothing the figure says so.
    """
    chosen = _in_turn(truth, _ROWS)
    columns = 1 + (_VARIANTS if config.any else 0)
    rows = images[chosen]
    if config.any:
        # A generator of its own, with a fixed seed: the fit's is left alone, and runs show the same draws.
        generator = torch.Generator().manual_seed(0)
        # The images in turn, so that each is mixed with another one where the recipe mixes neighbours.
        changed = augment(torch.from_numpy(np.tile(rows, (_VARIANTS, 1, 1, 1))), config, generator)
        if config.mixes:
            changed, _ = mix(changed, torch.from_numpy(np.tile(truth[chosen], _VARIANTS)), config, generator)
        pixels = changed.float().round().clamp(0, 255).to(torch.uint8).numpy()
        variants = pixels.reshape(_VARIANTS, *rows.shape).swapaxes(0, 1)
        shown = np.concatenate((rows[:, None], variants), axis=1)
        title = "Training images, and what augmentation makes of each"
        figure = new_figure(1.35 * columns, 1.4 * len(chosen) + 0.45)
        grid = figure.subplots(len(chosen), columns, squeeze=False)
    else:
        shown = rows[None]
        title = "No augmentation: the network sees the images as they are"
        figure = new_figure(max(1.35 * len(chosen), 5.4), 2.2)
        grid = figure.subplots(1, len(chosen), squeeze=False)
    figure.suptitle(title, color=INK, fontsize=12)
    for axes, image in zip(grid.flat, shown.reshape(-1, *rows.shape[1:]), strict=True):
        _show(axes, image)
        axes.set_axis_off()
    first = grid[:, 0] if config.any else grid[0]
    for axes, index in zip(first, chosen, strict=True):
        axes.set_title(short(labels[truth[index]]), fontsize=8, color=INK, pad=3)
    return figure


def _in_turn(truth: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Indices, a class after the other: the first image of each, then the second of each, …"""
    order = np.argsort(truth, kind="stable")
    starts = np.searchsorted(truth[order], truth[order])
    turn = np.arange(len(truth)) - starts  # how many of its class stand before it
    return order[np.argsort(turn, kind="stable")][:most]


def _show(axes: Axes, image: NDArray[np.uint8]) -> None:
    axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
