"""What a network sees while it learns: activations, Grad-CAM and filters on fixed images, as MLflow's image series.

    series = ImageSeries(run, validation)
    series.log(0, graph)
    result = fit(..., watch=series.watch)
    series.log(result.best_epoch, graph)

The same keys and, up to the last one, the same steps in every run, so that the compare view shows runs side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from services.training import mosaic
from services.training.inside import first_filters, look_inside

if TYPE_CHECKING:
    from services.training.data.dataset import Split
    from services.training.networks import ServedGraph

PROBES: Final = 4
"""How many images are looked at."""


class ImageLog(Protocol):
    """Whoever keeps the images of a step."""

    def image(self, key: str, step: int, image: NDArray[np.uint8]) -> None: ...


class ImageSeries:
    """Logs what the network sees at epochs 1, 2, 4, 8, 16, … and where it is told to."""

    def __init__(self, log: ImageLog, validation: Split) -> None:
        """Choose the images: the same for every run on the same validation split, whatever its seed."""
        chosen = probes(validation.labels)
        self._images, self._classes = validation.images[chosen], validation.labels[chosen]
        self._log = log
        self._done: set[int] = set()

    def watch(self, epoch: int, graph: ServedGraph) -> None:
        """Called after every epoch (from 1); logs where the epoch is a power of two."""
        if epoch & (epoch - 1) == 0:
            self.log(epoch, graph)

    def log(self, step: int, graph: ServedGraph) -> None:
        """Log the network as it is, once a step; Grad-CAM explains the true class."""
        if step in self._done:
            return
        self._done.add(step)
        for key, picture in pictures(graph, self._images, self._classes).items():
            self._log.image(key, step, picture)


def pictures(graph: ServedGraph, images: NDArray[np.uint8], classes: NDArray[np.int64]) -> dict[str, NDArray[np.uint8]]:
    """The pictures of one step, uint8 (height, width, 3), by the key of their series."""
    inside = look_inside(graph, images, classes=classes)
    return {
        **{f"activations-{name}": mosaic.activations(images, maps) for name, maps in inside.activations.items()},
        "grad-cam": mosaic.cams(images, inside.cam),
        "filters": mosaic.filters(first_filters(graph.network)),
    }


def probes(labels: NDArray[np.int64], most: int = PROBES) -> NDArray[np.int64]:
    """Indices of images: one of each of the first classes, round again where there are fewer classes than images."""
    random = np.random.default_rng(0)
    piles = [random.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)[:most]]
    rounds = [pile[place] for place in range(most) for pile in piles if place < len(pile)]
    return np.array(rounds[:most], dtype=np.int64)
