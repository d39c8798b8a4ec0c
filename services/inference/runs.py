"""Runs of one graph over batches of requests: what they take, and whose fault a failure is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from contracts.errors import StrideError
from services.inference import logs
from services.inference.batch import Images, Job, Probabilities, Ran, Reason
from services.inference.errors import InferenceFailed

Outcome = tuple[Job, Probabilities | StrideError]
_NEWEST: Final = 0.2
"""The weight of the newest batch in the mean seconds a row; a load that changes is followed within some ten batches."""


class Runs:
    """Belongs to whoever runs: one at a time."""

    def __init__(
        self,
        infer: Callable[[Images], Probabilities],
        *,
        max_batch: int,
        clock: Callable[[], float] = time.perf_counter,
        row_s: float = 0.0,
    ) -> None:
        """`clock` is what `row_s` is measured with, and `row_s` what is expected of the first run."""
        self._infer = infer
        self._max_batch = max_batch
        self._clock = clock
        self._begun = 0.0
        """On that clock: when the run began."""
        self.row_s = row_s
        """The mean seconds a row on that clock; 0 before the first run where none are given."""
        self.waited_s = row_s
        """The same on the wall's: what a row makes the others wait."""

    def together(self, jobs: Sequence[Job], reason: Reason) -> tuple[list[Outcome], Ran]:
        """Run the jobs as one batch; each gets its own answers, and where the batch fails, its own failure."""
        started = self._begin()
        outcomes: list[Outcome]
        try:
            answers = self._answers([job.images for job in jobs])
        except Exception as error:  # noqa: BLE001 - whatever the runtime raises must not end the thread
            outcomes = [self._alone(job, error if len(jobs) == 1 else None) for job in jobs]
        else:
            outcomes, at = [], 0
            for job in jobs:
                outcomes.append((job, answers[at : at + len(job.images)]))
                at += len(job.images)
        ended = time.perf_counter()
        for job in jobs:
            if job.trace is not None:
                job.trace.submitted, job.trace.inferring, job.trace.inferred = job.since, started, ended
        return outcomes, self._ran(started, ended, reason, [(len(job.images), job.since) for job in jobs])

    def at_once(self, images: Sequence[Images], since: Sequence[float]) -> tuple[Probabilities, Ran] | None:
        """Run images of requests that have no job; None where that fails, and they are to have one.

        Args:
            since: when each of them was ready, on time.perf_counter's clock.
        """
        started = self._begin()
        try:
            answers = self._answers(images)
        except Exception:  # noqa: BLE001 - as jobs they are run alone and the failure is logged
            return None
        ended = time.perf_counter()
        rows = [len(one) for one in images]
        return answers, self._ran(started, ended, "idle", list(zip(rows, since, strict=True)))

    def _begin(self) -> float:
        self._begun = self._clock()
        return time.perf_counter()

    def _answers(self, images: Sequence[Images]) -> Probabilities:
        batch = images[0] if len(images) == 1 else np.concatenate(images)
        answers = self._infer(batch)
        if len(answers) != len(batch):  # cut into parts, they would go to the wrong questions
            raise ValueError(f"the model gave {len(answers)} answers to {len(batch)} images")
        return answers

    def _alone(self, job: Job, error: Exception | None) -> Outcome:
        """Run one job of a failed batch by itself, so that only the one that fails pays for it."""
        if error is None:
            try:
                return job, self._answers([job.images])
            except Exception as own:  # noqa: BLE001 - as above
                error = own
        trace = {"trace_id": job.trace.trace_id.decode()} if job.trace is not None else {}
        logs.failure("inference_failed", error, rows=len(job.images), request_id=job.request_id, **trace)
        return job, InferenceFailed("the model failed on this image; the server's log says why.")

    def _ran(self, started: float, ended: float, reason: Reason, parts: list[tuple[int, float]]) -> Ran:
        """What is told of a run of so many rows, ready since then, of each request."""
        rows = sum(count for count, _ in parts)
        newest = _NEWEST if self.row_s else 1.0
        self.row_s += newest * ((self._clock() - self._begun) / rows - self.row_s)
        self.waited_s += newest * ((ended - started) / rows - self.waited_s)
        told: Reason = "full" if rows >= self._max_batch else reason
        return Ran(rows, told, ended - started, tuple(started - since for _, since in parts))
