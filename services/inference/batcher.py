"""The batcher: requests in, batches through one thread, answers back, each to its own question.

It is work-conserving: while the thread computes, what arrives gathers; when it is free, it takes all that has gathered,
up to `max_batch` rows, at once. Nothing polls and nothing waits on purpose, so one request alone is run alone and at
once, and under load the batches grow by themselves.

Waking a thread and being woken by it costs about as much as a tiny network's answer. So a batch that is known to be
quick, and finds the thread idle, is run on the event loop itself, once the loop has read all that has come in with it.

Where the two share one core, the thread would only work in turns with the loop, at a higher cost, and a load that the
loop can just bear would never let the thread become idle again. So there, what is quick always belongs to the loop, in
pieces that are; while the thread has something slow, it waits for that to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from contracts.errors import Overloaded, StrideError
from services.inference import logs
from services.inference.batch import Images, Job, Probabilities, Ran, Reason
from services.inference.runs import Outcome, Runs
from services.inference.tracing import Trace

_STOP: Final = None
_MARGIN: Final = 0.75
"""The part of its deadline that a request may be expected to wait: the mean is known only so well."""
_Deliver = Callable[[list[Outcome], Ran | None], None]


class Batcher:
    """Counts rows on the event loop, computes in its own thread.

    `kept`, `check`, `admit`, `submit`, `release` and `close` belong to the loop; `infer` is called in the thread, or on
    the loop while the thread is idle, one call at a time.
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
        at_once_s: float = 0.0,
        alone: bool = False,
        row_s: float = 0.0,
    ) -> None:
        """Start the thread.

        Args:
            infer: uint8 (n, height, width, channels) -> float32 (n, classes).
            queue_rows: most rows admitted at a time.
            on_batch: is told of each run, on the loop.
            at_once_s: a batch of so many expected seconds may hold up the loop instead of going through the thread.
            alone: the loop and the thread share one core.
            row_s: the seconds a row that are expected of the first run; 0 where nobody knows.
        """
        # On a shared core, time by the clock would be that of the neighbours as well.
        clock = time.thread_time if alone else time.perf_counter
        self._runs = Runs(infer, max_batch=max_batch, clock=clock, row_s=row_s)
        self._alone = alone
        self._patient = False
        """What is near waits for the thread's delivery."""
        self._loop = loop
        self._max_batch = max_batch
        self._queue_rows = queue_rows
        self._on_batch = on_batch
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._at_once_s = at_once_s
        self._near: list[Job] = []
        """What came in this round of the loop, and is to be run on it."""
        self._nowhere = contextvars.Context()  # of no request: a batch belongs to several
        self._submitted = 0  # counted by the loop alone,
        self._settled = 0  # and by the thread, or by the loop while the thread has none: neither needs a lock
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

        Raises:
            Overloaded: as `check`.
        """
        self.check(rows, within_s=within_s)
        self.rows += rows

    def check(self, rows: int, *, within_s: float = math.inf) -> None:
        """Whether there is a place for `rows` now.

        Args:
            within_s: the request's deadline. Who would probably miss it is refused now: work on an answer that comes
                too late would only make the next one late as well.

        Raises:
            Overloaded: the places are taken, or the wait would be too long; says when to come again.
        """
        # What was given up by its client is released at once, but holds its memory until the thread comes to it.
        before = max(self.rows, self._submitted - self._settled)
        retry = max(1.0, before * self._runs.waited_s)
        if before + rows > self._queue_rows:
            waiting = f"{before} images are waiting, {self._queue_rows} is the limit"
            raise Overloaded(f"the queue is full: {waiting}; try again in {retry:.0f} s.", retry_after_s=retry)
        # The first in line is always taken: its run is what corrects a mean that has become too large.
        if before and (before + rows) * self._runs.waited_s > _MARGIN * within_s:
            waiting = f"{before} images are waiting, about {before * self._runs.waited_s:.1f} s of work"
            detail = f"the deadline would pass: {waiting}; try again in {retry:.0f} s."
            raise Overloaded(detail, retry_after_s=retry, reason="would_be_late")

    def release(self, rows: int) -> None:
        self.rows -= rows
        self._end_if_done()

    def submit(
        self, images: Images, *, expires: float, trace: Trace | None = None, aside: bool = False
    ) -> asyncio.Future[Probabilities]:
        """Queue admitted rows.

        Args:
            images: uint8, (n, height, width, channels).
            expires: on time.perf_counter's clock; what is not begun by then is not computed.
            trace: is told when the rows came, when they were begun and when they were done.
            aside: never hold up the loop for it.

        Returns:
            A future of float32 (n, classes), or of Overloaded or InferenceFailed. A cancelled one is not computed.
        """
        future: asyncio.Future[Probabilities] = self._loop.create_future()
        job = Job(images, future, time.perf_counter(), expires, trace)
        near = self._quick(len(images)) if self._alone else bool(self._near) or self.takes_now(len(images))
        if near and not aside:
            if not self._near:
                self._loop.call_soon(self._run_near, context=self._nowhere)
            self._near.append(job)
        else:
            if self._patient:  # in the order in which they came
                self._give_up_waiting()
            self._inbox.put(job)
        self._submitted += len(images)
        return future

    def takes_now(self, rows: int) -> bool:
        """Whether so many rows may be run on the loop: the thread is idle, and they are quick, or their pieces are."""
        return self._submitted == self._settled and self._quick(1 if self._alone else rows)

    @property
    def piece(self) -> int:
        """Rows that are run in one go: as many as may hold up the loop at once where they all belong to it."""
        if not self._alone or not self._runs.row_s:
            return self._max_batch
        return max(1, min(self._max_batch, int(self._at_once_s / self._runs.row_s)))

    def run_now(self, images: Sequence[Images], since: Sequence[float]) -> Probabilities | None:
        """Run on the loop what the loop has to answer anyway, without places and futures.

        Args:
            images: of each request, uint8 (n, height, width, channels).
            since: when each was ready, on time.perf_counter's clock.

        Returns:
            float32 (all their rows, classes); None where it may not be, or fails: each is to be submitted then.
        """
        if not self.takes_now(sum(map(len, images))) or (ran := self._runs.at_once(images, since)) is None:
            return None
        self._on_batch(ran[1])
        return ran[0]

    def close(self) -> None:
        """End the thread once everything that was admitted has been released, and nobody keeps it."""
        self._closing = True
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._closing and self.rows == 0 and not self._keepers:
            self._inbox.put(_STOP)

    def _quick(self, rows: int) -> bool:
        """Whether so many rows hold up the loop for no longer than may be; of the first ones nobody knows."""
        return 0.0 < rows * self._runs.row_s <= self._at_once_s

    def _run_near(self, *, waited: bool = False) -> None:
        """Run what came in the last round of the loop: here if that is quick, in the thread if not.

        Args:
            waited: it has waited for the thread already.
        """
        near, self._near = self._near, []
        self._patient = False
        rows = sum(len(job.images) for job in near)
        idle = self._submitted - rows == self._settled
        if idle and self._alone:
            self._run_piece(near)
        elif idle and self._quick(rows):
            self._run_here(near)
        else:
            self._near, self._patient = near, self._alone and not waited
            if not self._patient:
                self._give_up_waiting()

    def _give_up_waiting(self) -> None:
        """Give what is near to the thread."""
        for job in self._near:
            self._inbox.put(job)
        self._near, self._patient = [], False

    def _run_piece(self, near: list[Job]) -> None:
        """Run as many of the jobs as may hold up the loop at once, and the others in its next round."""
        rows = count = 0
        for job in near:
            if count and rows + len(job.images) > self.piece:
                break
            rows += len(job.images)
            count += 1
        self._run_here(near[:count])
        if count < len(near):
            self._near = near[count:]
            self._loop.call_soon(self._run_near, context=self._nowhere)

    def _run_here(self, jobs: list[Job]) -> None:
        """Run the jobs on the loop; the thread is idle, so `infer` is still called once at a time."""
        waiting = iter(jobs)
        job: Job | None = next(waiting)
        while job is not None:
            batch, held, _ = self._gather(job, lambda: next(waiting, _STOP), self._settle)
            if batch:
                self._run(batch, "idle", self._settle)
            job = held or next(waiting, None)

    def _work(self) -> None:
        held: Job | None = None
        while True:
            idle = held is None and self._inbox.empty()
            job = held or self._inbox.get()
            if job is _STOP:
                return
            batch, held, stop = self._gather(job, self._arrived, self._deliver)
            if batch:
                self._run(batch, "full" if held is not None else "idle" if idle else "gathered", self._deliver)
            elif self._alone:
                self._deliver([], None)  # what is near may wait for it
            if stop:
                return
            del job, batch  # they would hold the images of the last batch until the next one

    def _arrived(self) -> Job | None:
        """The next job that waits for the thread.

        Raises:
            queue.Empty: there is none.
        """
        return self._inbox.get_nowait()

    def _gather(
        self, job: Job | None, more: Callable[[], Job | None], deliver: _Deliver
    ) -> tuple[list[Job], Job | None, bool]:
        """All that waits, up to `max_batch` rows: the batch, the job that did not fit, and whether to end."""
        batch: list[Job] = []
        late: list[Outcome] = []
        rows = 0
        held: Job | None = None
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
                job = more()
            except queue.Empty:
                break
        if late:
            deliver(late, None)
        return batch, held, job is _STOP

    def _run(self, batch: list[Job], reason: Reason, deliver: _Deliver) -> None:
        outcomes, ran = self._runs.together(batch, reason)
        self._settled += ran.rows  # from here on the thread counts as idle
        deliver(outcomes, ran)

    def _deliver(self, outcomes: list[Outcome], ran: Ran | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._settle, outcomes, ran)
        except RuntimeError:  # the loop is closed: the process ends, and nobody waits any more
            if outcomes:
                logs.warning("answers_dropped", requests=len(outcomes))

    def _settle(self, outcomes: list[Outcome], ran: Ran | None) -> None:
        for job, outcome in outcomes:
            if job.future.done():  # cancelled while it was computed
                continue
            if isinstance(outcome, StrideError):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        if ran is not None:
            self._on_batch(ran)
        if self._patient:
            self._run_near(waited=True)
