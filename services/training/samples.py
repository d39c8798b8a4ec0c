"""Figures of the training data: samples with their labels, and what augmentation makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from contracts.recipe import Augmentation
from services.training.augment import augment, mix
from services.training.drawing import pictures, short

if TYPE_CHECKING:
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
    shown = [(images[index], short(labels[truth[index]])) for index in chosen]
    rows = [shown[start : start + 8] for start in range(0, len(shown), 8)]
    return pictures(rows, f"{len(chosen)} of {len(truth):,} training images")


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
    rows, names = images[chosen], [short(labels[truth[index]]) for index in chosen]
    if not config.any:
        heading = "No augmentation: the network sees the images as they are"
        return pictures([list(zip(rows, names, strict=True))], heading)
    # A generator of its own, with a fixed seed: the fit's is left alone, and runs show the same draws.
    generator = torch.Generator().manual_seed(0)
    # The images in turn, so that each is mixed with another one where the recipe mixes neighbours.
    changed = augment(torch.from_numpy(np.tile(rows, (_VARIANTS, 1, 1, 1))), config, generator)
    if config.mixes:
        changed, _ = mix(changed, torch.from_numpy(np.tile(truth[chosen], _VARIANTS)), config, generator)
    pixels = changed.float().round().clamp(0, 255).to(torch.uint8).numpy()
    variants = pixels.reshape(_VARIANTS, *rows.shape).swapaxes(0, 1)
    shown = [
        [(image, name), *((variant, "") for variant in made)]
        for image, name, made in zip(rows, names, variants, strict=True)
    ]
    return pictures(shown, "Training images, and what augmentation makes of each")


def _in_turn(truth: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Indices, a class after the other: the first image of each, then the second of each, …"""
    order = np.argsort(truth, kind="stable")
    starts = np.searchsorted(truth[order], truth[order])
    turn = np.arange(len(truth)) - starts  # how many of its class stand before it
    return order[np.argsort(turn, kind="stable")][:most]
