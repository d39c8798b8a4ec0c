"""The batcher: requests in, batches through one thread, answers back, each to its own question.

It is work-conserving: while the thread computes, what arrives gathers; when it is free, it takes all that has gathered,
up to `max_batch` rows, at once. Nothing polls and nothing waits on purpose, so one request alone is run alone and at
once, and under load the batches grow by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from contracts.errors import Overloaded, StrideError
from services.inference import logs
from services.inference.errors import InferenceFailed
from services.inference.tracing import Trace

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Reason = Literal["idle", "gathered", "full"]
"""Why a batch was run as it was: the thread was free; it took all that had gathered; or no more rows may go in."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of the graph, for the metrics. Seconds."""

    rows: int
    reason: Reason
    infer_s: float
    queue_s: tuple[float, ...]
    """How long each request of the batch waited."""


class _Job:
    """One request's rows on their way through."""

    __slots__ = ("expires", "future", "images", "request_id", "since", "trace")

    def __init__(
        self,
        images: Images,
        future: asyncio.Future[Probabilities],
        since: float,
        expires: float,
        trace: Trace | None,
    ) -> None:
        self.images = images
        self.future = future
        self.since = since
        self.expires = expires
        self.trace = trace
        self.request_id = logs.request_id.get()  # the thread has no context of the request


_STOP: Final = None
_NEWEST: Final = 0.2
"""The weight of the newest batch in the mean seconds a row; a load that changes is followed within some ten batches."""
_MARGIN: Final = 0.75
"""The part of its deadline that a request may be expected to wait: the mean is known only so well."""
_Outcome = tuple[_Job, Probabilities | StrideError]


class Batcher:
    """Counts rows on the event loop, computes in its own thread.

    `kept`, `admit`, `submit`, `release` and `close` belong to the loop; `infer` is called in the thread, one call
    at a time.
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
        self._submitted = 0  # counted by the loop alone,
        self._settled = 0  # and by the thread alone: neither needs a lock
        self._closing = False
        self.rows = 0
        """Rows admitted and not yet released: waiting, being decoded or computed."""
        self._keepers = 0
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the thread for a request that is still being read: its rows are admitted once they are known."""
        self._keepers += 1
        try:
            yield
        finally:
            self._keepers -= 1
            self._end_if_done()

    def admit(self, rows: int, *, within_s: float = math.inf) -> None:
        """Take a place for `rows`, before any work is put into them; to be given back with `release`.

        Args:
            within_s: the request's deadline. Who would probably miss it is refused now: work on an answer that comes
                too late would only make the next one late as well.

        Raises:
            Overloaded: the places are taken, or the wait would be too long; says when to come again.
        """
        # What was given up by its client is released at once, but holds its memory until the thread comes to it.
        before = max(self.rows, self._submitted - self._settled)
        retry = max(1.0, before * self._row_s)
        if before + rows > self._queue_rows:
            waiting = f"{before} images are waiting, {self._queue_rows} is the limit"
            raise Overloaded(f"the queue is full: {waiting}; try again in {retry:.0f} s.", retry_after_s=retry)
        # The first in line is always taken: its run is what corrects a mean that has become too large.
        if before and (before + rows) * self._row_s > _MARGIN * within_s:
            waiting = f"{before} images are waiting, about {before * self._row_s:.1f} s of work"
            detail = f"the deadline would pass: {waiting}; try again in {retry:.0f} s."
            raise Overloaded(detail, retry_after_s=retry, reason="would_be_late")
        self.rows += rows

    def release(self, rows: int) -> None:
        self.rows -= rows
        self._end_if_done()

    def submit(self, images: Images, *, expires: float, trace: Trace | None = None) -> asyncio.Future[Probabilities]:
        """Queue admitted rows.

        Args:
            images: uint8, (n, height, width, channels).
            expires: on time.perf_counter's clock; what is not begun by then is not computed.
            trace: is told when the rows came, when they were begun and when they were done.

        Returns:
            A future of float32 (n, classes), or of Overloaded or InferenceFailed. A cancelled one is not computed.
        """
        future: asyncio.Future[Probabilities] = self._loop.create_future()
        self._submitted += len(images)
        self._inbox.put(_Job(images, future, time.perf_counter(), expires, trace))
        return future

    def close(self) -> None:
        """End the thread once everything that was admitted has been released, and nobody keeps it."""
        self._closing = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._closing and self.rows == 0 and not self._keepers:
            self._inbox.put(_STOP)

    def _work(self) -> None:
        held: _Job | None = None
        while True:
            idle = held is None and self._inbox.empty()
            job = held or self._inbox.get()
            if job is _STOP:
                return
            batch, held, stop = self._gather(job)
            if batch:
                rows = sum(len(job.images) for job in batch)
                full = held is not None or rows >= self._max_batch
                self._run(batch, rows, "full" if full else "idle" if idle else "gathered")
            if stop:
                return
            del job, batch  # they would hold the images of the last batch until the next one

    def _gather(self, job: _Job | None) -> tuple[list[_Job], _Job | None, bool]:
        """All that waits, up to `max_batch` rows: the batch, the job that did not fit, and whether to end."""
        batch: list[_Job] = []
        late: list[_Outcome] = []
        rows = 0
        held: _Job | None = None
        while job is not _STOP:
            if job.future.cancelled():
                self._settled += len(job.images)
            elif time.perf_counter() > job.expires:
                self._settled += len(job.images)
                detail = "the deadline passed while it waited; try again with less load."
                late.append((job, Overloaded(detail, reason="late")))
            elif batch and rows + len(job.images) > self._max_batch:
                held = job
                break
            else:
                batch.append(job)
                rows += len(job.images)
                if rows >= self._max_batch:
                    break
            try:
                job = self._inbox.get_nowait()
            except queue.Empty:
                break
        if late:
            self._deliver(late, None)
        return batch, held, job is _STOP

    def _run(self, batch: list[_Job], rows: int, reason: Reason) -> None:
        started = time.perf_counter()
        outcomes: list[_Outcome]
        try:
            if len(batch) == 1:
                outcomes = [(batch[0], self._answers(batch[0].images))]
            else:
                answers = self._answers(np.concatenate([job.images for job in batch]))
                outcomes, at = [], 0
                for job in batch:
                    outcomes.append((job, answers[at : at + len(job.images)]))
                    at += len(job.images)
        except Exception as error:  # noqa: BLE001 - whatever the runtime raises must not end the thread
            outcomes = [self._alone(job, error if len(batch) == 1 else None) for job in batch]
        elapsed = time.perf_counter() - started
        self._settled += rows
        newest = _NEWEST if self._row_s else 1.0
        self._row_s += newest * (elapsed / rows - self._row_s)
        for job in batch:
            if job.trace is not None:
                job.trace.submitted, job.trace.inferring, job.trace.inferred = job.since, started, started + elapsed
        self._deliver(outcomes, Ran(rows, reason, elapsed, tuple(started - job.since for job in batch)))

    def _answers(self, images: Images) -> Probabilities:
        answers = self._infer(images)
        if len(answers) != len(images):  # cut into parts, they would go to the wrong questions
            raise ValueError(f"the model gave {len(answers)} answers to {len(images)} images")
        return answers

    def _alone(self, job: _Job, error: Exception | None) -> _Outcome:
        """Run one job of a failed batch by itself, so that only the one that fails pays for it."""
        if error is None:
            try:
                return job, self._answers(job.images)
            except Exception as own:  # noqa: BLE001 - as above
                error = own
        trace = {"trace_id": job.trace.trace_id.decode()} if job.trace is not None else {}
        logs.failure("inference_failed", error, rows=len(job.images), request_id=job.request_id, **trace)
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
