"""The batcher: requests in, batches through one thread, answers back, each to its own question.

It is work-conserving: while the thread computes, what arrives gathers; when it is free, it takes all that has gathered,
up to `max_batch` rows, at once. Nothing polls and nothing waits on purpose, so one request alone is run alone and at
once, and under load the batches grow by themselves.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contracts.errors import Overloaded, StrideError
from services.inference import logs
from services.inference.errors import InferenceFailed

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of the graph, for the metrics. Seconds."""

    rows: int
    infer_s: float
    queue_s: tuple[float, ...]
    """How long each request of the batch waited."""


class _Job:
    """One request's rows on their way through."""

    __slots__ = ("expires", "future", "images", "since")

    def __init__(self, images: Images, future: asyncio.Future[Probabilities], since: float, expires: float) -> None:
        self.images = images
        self.future = future
        self.since = since
        self.expires = expires


_STOP: Final = None
_Outcome = tuple[_Job, Probabilities | StrideError]


class Batcher:
    """Counts rows on the event loop, computes in its own thread.

    `admit`, `submit`, `release` and `close` belong to the loop; `infer` is called in the thread, one call at a time.
    """

    def __init__(
        self,
        infer: Callable[[Images], Probabilities],
        *,
        loop: asyncio.AbstractEventLoop,
        max_batch: int,
        queue_rows: int,
        on_batch: Callable[[Ran], None] = lambda _: None,
        name: str = "batcher",
    ) -> None:
        self._infer = infer
        self._loop = loop
        self._max_batch = max_batch
        self._queue_rows = queue_rows
        self._on_batch = on_batch
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._row_s = 0.0
        self._closing = False
        self.rows = 0
        """Rows admitted and not yet released: waiting, being decoded or computed."""
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def admit(self, rows: int) -> None:
        """Take a place for `rows`, before any work is put into them; to be given back with `release`.

        Raises:
            Overloaded: the places are taken; says when to come again.
        """
        if self.rows + rows > self._queue_rows:
            waiting = f"{self.rows} images are waiting, {self._queue_rows} is the limit"
            retry = max(1.0, self.rows * self._row_s)
            raise Overloaded(f"the queue is full: {waiting}; try again in {retry:.0f} s.", retry_after_s=retry)
        self.rows += rows

    def release(self, rows: int) -> None:
        self.rows -= rows
        if self._closing and self.rows == 0:
            self._inbox.put(_STOP)

    def submit(self, images: Images, *, expires: float) -> asyncio.Future[Probabilities]:
        """Queue admitted rows.

        Args:
            images: uint8, (n, height, width, channels).
            expires: on time.perf_counter's clock; what is not begun by then is not computed.

        Returns:
            A future of float32 (n, classes), or of Overloaded or InferenceFailed. A cancelled one is not computed.
        """
        future: asyncio.Future[Probabilities] = self._loop.create_future()
        self._inbox.put(_Job(images, future, time.perf_counter(), expires))
        return future

    def close(self) -> None:
        """End the thread once everything that was admitted has been released."""
        if not self._closing:
            self._closing = True
            if self.rows == 0:
                self._inbox.put(_STOP)

    def _work(self) -> None:
        held: _Job | None = None
        while True:
            job = held or self._inbox.get()
            if job is _STOP:
                return
            batch, rows, held, stop = self._gather(job)
            if batch:
                self._run(batch, rows)
            if stop:
                return

    def _gather(self, job: _Job | None) -> tuple[list[_Job], int, _Job | None, bool]:
        """All that waits, up to `max_batch` rows: the batch, its rows, the job that did not fit, and whether to end."""
        batch: list[_Job] = []
        rows = 0
        while job is not _STOP:
            if not job.future.cancelled():
                if time.perf_counter() > job.expires:
                    late = Overloaded(
                        "the deadline passed while the request waited; try again when there is less load."
                    )
                    self._deliver([(job, late)], None)
                elif batch and rows + len(job.images) > self._max_batch:
                    return batch, rows, job, False
                else:
                    batch.append(job)
                    rows += len(job.images)
            if rows >= self._max_batch:
                return batch, rows, None, False
            try:
                job = self._inbox.get_nowait()
            except queue.Empty:
                return batch, rows, None, False
        return batch, rows, None, True

    def _run(self, batch: list[_Job], rows: int) -> None:
        started = time.perf_counter()
        outcomes: list[_Outcome]
        try:
            if len(batch) == 1:
                outcomes = [(batch[0], self._infer(batch[0].images))]
            else:
                answers = self._infer(np.concatenate([job.images for job in batch]))
                outcomes, at = [], 0
                for job in batch:
                    outcomes.append((job, answers[at : at + len(job.images)]))
                    at += len(job.images)
        except Exception as error:  # noqa: BLE001 - whatever the runtime raises must not end the thread
            outcomes = [self._alone(job, error if len(batch) == 1 else None) for job in batch]
        elapsed = time.perf_counter() - started
        self._row_s += 0.1 * (elapsed / rows - self._row_s)
        self._deliver(outcomes, Ran(rows, elapsed, tuple(started - job.since for job in batch)))

    def _alone(self, job: _Job, error: Exception | None) -> _Outcome:
        """Run one job of a failed batch by itself, so that only the one that fails pays for it."""
        if error is None:
            try:
                return job, self._infer(job.images)
            except Exception as own:  # noqa: BLE001 - as above
                error = own
        logs.failure("inference_failed", error, rows=len(job.images))
        return job, InferenceFailed("the model failed on this image; the server's log says why.")

    def _deliver(self, outcomes: list[_Outcome], ran: Ran | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, outcomes, ran)
        except RuntimeError:  # the loop is closed: the process ends, and nobody waits any more
            logs.warning("answers_dropped", requests=len(outcomes))

    def _settle(self, outcomes: list[_Outcome], ran: Ran | None) -> None:
        for job, outcome in outcomes:
            if job.future.done():  # cancelled while it was computed
                continue
            if isinstance(outcome, StrideError):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        if ran is not None:
            self._on_batch(ran)
