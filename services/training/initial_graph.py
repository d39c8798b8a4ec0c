"""The network of a recipe as a fit begins with it: its initial weights, and the normalisation of its data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from contracts.recipe import Normalize, Recipe
from services.training import weights
from services.training.data.dataset import Dataset
from services.training.networks import ServedGraph, build
from services.training.optimizers import parameter_groups


def make_graph(recipe: Recipe, dataset: Dataset) -> ServedGraph:
    """The recipe's network for a data set, on the CPU, with its initial weights and its normalisation.

    Raises:
        RecipeError: see `build` and `parameter_groups`.
        DataError: the initial weights are missing or of another network.
        RegistryError: they are in the tracking server, which is away or does not hold them.
    """
    network = build(recipe.model, image=recipe.data.image, classes=len(dataset.labels))
    parameter_groups(recipe.optimizer, network)  # a layer that is not there is told before anything is opened
    own = weights.load(network, recipe, labels=dataset.labels)
    mean, std = normalization(recipe.data.normalize, dataset.train.images, own=own)
    return ServedGraph(network, output=recipe.output, mean=mean, std=std)


def normalization(
    how: str | Normalize, images: NDArray[np.uint8], *, own: Normalize | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel, on the scale 0-1, that `data.normalize` means for images (n, h, w, c).

    `own` is what the initial weights were fitted with, None where they are random.
    """
    channels = images.shape[3]
    if how == "auto" and own is not None:
        how = own
    if isinstance(how, Normalize):
        return how.mean, how.std
    if how in ("auto", "unit"):
        return (0.0,) * channels, (1.0,) * channels
    values = np.arange(256) / 255
    mean, std = [], []
    # A histogram gives both exactly, without a float copy of the images, which may be too many for memory
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), 4096):
        part = images[start : start + 4096]
        counts += [np.bincount(part[..., channel].reshape(-1), minlength=256) for channel in range(channels)]
    for channel in range(channels):
        share = counts[channel] / counts[channel].sum()
        mean.append(float(share @ values))
        std.append(float(np.sqrt(share @ (values - mean[-1]) ** 2)) or 1.0)
    return tuple(mean), tuple(std)
