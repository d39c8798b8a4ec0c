"""Images that are not in memory: read row by row from where they are kept, whenever they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Read = Callable[[NDArray[np.intp], NDArray[np.uint8]], None]
"""Writes the images of some places, int (n,), into uint8 (n, height, width, channels); from any thread."""


class Rows:
    """What an array of images is asked for, without the array: length, shape, slices and arrays of indices."""

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, read: Read, places: NDArray[np.intp], image: Sequence[int], digests: Sequence[bytes]) -> None:
        """Make a view of images.

        Args:
            read: Gives them.
            places: int (n,): where `read` finds each of them.
            image: Height, width and channels.
            digests: The sha256 of each, as `services.training.data.dataset.digests` computes it.
        """
        self._read, self._places = read, places
        self._image = tuple(image)
        self.digests = list(digests)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self._places), *self._image

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape))

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """The images at an index, a slice or an array of indices, in memory."""
        places = self._places[key]
        if not isinstance(places, np.ndarray):
            image: NDArray[np.uint8] = self._gathered(np.array([places]))[0]
            return image
        return self._gathered(places)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or np.uint8, copy=False)

    def read(self, indices: NDArray[np.intp], out: NDArray[np.uint8]) -> None:
        """Write the images at some indices into an array of as many."""
        self._read(self._places[indices], out)

    def take(self, indices: NDArray[np.intp]) -> NDArray[np.uint8]:
        """A view of the images at some indices, in their order; nothing is read."""
        chosen = [self.digests[index] for index in indices]
        return Rows(self._read, self._places[indices], self._image, chosen).as_images()

    def as_images(self) -> NDArray[np.uint8]:
        """This, under the type of the arrays in whose place it stands."""
        return cast("NDArray[np.uint8]", self)

    def _gathered(self, places: NDArray[np.intp]) -> NDArray[np.uint8]:
        out = np.empty((len(places), *self._image), dtype=np.uint8)
        self._read(places, out)
        return out


def rows_of(images: object) -> Rows | None:
    """The rows that stand for an array of images; None where it is an array."""
    return images if isinstance(images, Rows) else None


def in_memory(images: NDArray[np.uint8]) -> bool:
    """Whether images are an array whose values are in memory: neither `Rows` nor a mapped file."""
    return isinstance(images, np.ndarray) and not isinstance(images, np.memmap)
