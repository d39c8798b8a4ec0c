"""Where a fit's images come from: the device's memory where they fit into it, and threads that read ahead elsewhere.

Both give the same rows in the same order, and `services.training.batches` changes them on the device, so that a fit
sees the same batches either way, to the bit.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.training.data.dataset import Split
from services.training.data.rows import in_memory, rows_of
from services.training.evaluate import to_device
from services.training.room import resident_limit

Spans = Sequence[tuple[int, int]]
_CHUNK: Final = 1024
"""Images copied to a device at once, where they come from a file."""
_AHEAD: Final = 2
"""How many more spans than threads are under way: one that is handed out, and one that waits."""


class Source(Protocol):
    """The images and labels of a split."""

    device: torch.device
    """Where `rows` puts them."""
    image: tuple[int, ...]
    """Height, width and channels."""
    reason: str
    """Why they are read in this way."""

    def __len__(self) -> int: ...

    def rows(self, spans: Spans, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Images uint8 (n, height, width, channels) and labels int64 (n,) of each span of places, on the device.

        Of a held base's features (`services.training.features`) they are floating-point, of any shape.

        Args:
            spans: (start, stop) each.
            order: int64 on the CPU, which image stands at each place; None is their own order.
        """
        ...


class Resident:
    """All images are in the device's memory."""

    def __init__(self, images: Tensor, labels: Tensor, *, reason: str = "") -> None:
        """Take what is on its device already: images, or their features."""
        self._images, self._labels, self.reason = images, labels, reason
        self.device, self.image = images.device, tuple(images.shape[1:])

    @classmethod
    def copied(cls, split: Split, device: str | torch.device, *, reason: str = "") -> Self:
        """Copy a split to a device; on the CPU an array that may be written to is used where it is."""
        # NHWC on the device: the permuted view that the network takes is channels_last without a copy
        return cls(_whole(split.images, torch.device(device)), to_device(split.labels, device), reason=reason)

    def __len__(self) -> int:
        return len(self._labels)

    def rows(self, spans: Spans, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source`."""
        if order is None:
            yield from ((self._images[start:stop], self._labels[start:stop]) for start, stop in spans)
            return
        order = order.to(self.device)
        for start, stop in spans:
            index = order[start:stop]  # rows at once: a fifth of the time of indexing
            yield self._images.index_select(0, index), self._labels.index_select(0, index)


class Streamed:
    """Images stay where they are, on disk or in the host's memory; threads gather what comes next."""

    def __init__(
        self, split: Split, device: str | torch.device, *, reason: str = "", threads: int | None = None
    ) -> None:
        """Read from a split.

        Args:
            split: Whose images may be `Rows`, a mapped file or an array.
            device: Where they are wanted.
            reason: See `Source`.
            threads: How many read; as many as there are processors, and eight at most, without.
        """
        self.device = torch.device(device)
        self._split = split
        self.image = tuple(split.images.shape[1:])
        self.reason = reason
        self.threads = threads or default_threads()

    def __len__(self) -> int:
        return len(self._split)

    def rows(self, spans: Spans, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source`; what a thread raises is raised here, when its turn comes."""
        where = None if order is None else order.numpy()
        coming = iter(spans)
        waiting: deque[Future[tuple[Tensor, Tensor]]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="stride-loader")
        try:
            for span in itertools.islice(coming, self.threads + _AHEAD):
                waiting.append(pool.submit(self._gather, span, where))
            while waiting:
                images, labels = waiting.popleft().result()
                for span in itertools.islice(coming, 1):
                    waiting.append(pool.submit(self._gather, span, where))
                # From pinned memory the copy runs beside the steps before it, and the host does not wait for it
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _gather(self, span: tuple[int, int], order: NDArray[np.int64] | None) -> tuple[Tensor, Tensor]:
        index = np.arange(*span) if order is None else order[slice(*span)]
        pinned = self.device.type == "cuda"
        images = torch.empty((len(index), *self.image), dtype=torch.uint8, pin_memory=pinned)
        labels = torch.empty(len(index), dtype=torch.int64, pin_memory=pinned)
        source = self._split.images
        if (rows := rows_of(source)) is not None:
            rows.read(index, images.numpy())
        else:
            np.take(source, index, axis=0, out=images.numpy(), mode="clip")  # with `raise` numpy buffers the result
        np.take(self._split.labels, index, out=labels.numpy(), mode="clip")
        return images, labels


def open_source(split: Split, device: str | torch.device, *, workers: int = 1) -> Resident | Streamed:
    """The images of a split for a device: resident where they fit, streamed otherwise.

    Args:
        split: Whose images.
        device: Where they are wanted.
        workers: How many processes do the same at once; memory and processors are divided among them.

    Raises:
        RecipeError: see `resident_limit`.
    """
    device = torch.device(device)
    limit, size = resident_limit(device), split.images.nbytes
    if device.type == "cpu":
        limit //= workers  # each holds its own copy, and a GPU is nobody else's
    # On the CPU an array is there already, and using it costs nothing more
    fits = size <= limit or (device.type == "cpu" and limit > 0)
    if in_memory(split.images) and fits:
        return Resident.copied(split, device, reason=f"resident: {_gb(size)} on the {device.type}")
    if in_memory(split.images):
        why = f"more than the {_gb(limit)} that may stay on the {device.type}"
    elif device.type != "cpu" and size <= limit:
        return Resident.copied(split, device, reason=f"resident: {_gb(size)} on the {device.type}, read from disk once")
    else:
        why = "read from disk"
    threads = max(1, default_threads() // workers)
    return Streamed(split, device, reason=f"streamed: {_gb(size)}, {why}", threads=threads)


def default_threads() -> int:
    """How many threads read ahead where nothing else is asked for."""
    return min(8, len(os.sched_getaffinity(0)))


def _whole(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    if in_memory(images):
        return to_device(images, device)
    tensor = torch.empty(images.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(images), _CHUNK):  # the host's memory need not hold all of them
        tensor[start : start + _CHUNK] = torch.from_numpy(np.array(images[start : start + _CHUNK]))
    return tensor


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
