"""Jobs from the store to Ray and back: begun in their order, followed to their end, begun again where they were lost.

One task of the service's event loop. What is under way stands in the store before Ray is told, so that a service that
is killed anywhere in here finds its jobs again: those that Ray still has go on, the others are begun again, and the
same command goes on from its checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from services.training.jobs import log
from services.training.jobs.errors import BadAnswer, RayError, StoreError
from services.training.jobs.files import JobFiles
from services.training.jobs.head import OwnHead
from services.training.jobs.job import Job, State
from services.training.jobs.link import RayLink
from services.training.jobs.metrics import Metrics
from services.training.jobs.outcome import by_itself, outcome
from services.training.jobs.ray_jobs import Attempt, RayJobs
from services.training.jobs.retention import tidy
from services.training.jobs.settings import Settings
from services.training.jobs.store import Store

TICK_S: Final = 1.0
_TIDY_S: Final = 600.0
"""Between two looks for jobs to forget."""
_MARGIN_S: Final = 3.0
"""Beside the jobs' grace, for Ray to see them end."""
_UNDER_WAY: Final = ("PENDING", "RUNNING")


class Runner:
    """Begins and follows the jobs of one store.

    Args:
        settings: The service's.
        store: Its jobs.
        head: The Ray of our own, None where `connect` is for a cluster.
        at_once: Jobs that are with Ray at the same time.
        environment: Variables for the jobs.
        connect: Makes the client for a head's address.
        metrics: Counts the jobs that end.
        patience_s: How long one job may be all that goes wrong before it is given up.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        *,
        head: OwnHead | None,
        at_once: int,
        environment: Mapping[str, str],
        connect: Callable[[str], RayJobs],
        metrics: Metrics,
        patience_s: float = 60.0,
    ) -> None:
        self._settings, self._store = settings, store
        self._at_once, self._environment, self._metrics = at_once, environment, metrics
        self._link = RayLink(head=head, cluster=settings.ray_address, connect=connect)
        self._wake, self._hurried = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._patience_s = patience_s
        self._faults: dict[str, float] = {}
        """Since when a step of these jobs, by id, goes wrong while Ray answers."""
        self._stopped: set[str] = set()
        """Submissions that were told to stop; a kill of the service forgets them, and tells them again."""

    @property
    def problem(self) -> str | None:
        """Why no job can be begun or followed now; None where all is well."""
        return self._link.problem

    async def check(self) -> None:
        """Raise RayError unless a job could be begun now."""
        await self._link.check()

    def wake(self) -> None:
        """There is something to do: do not wait for the next tick."""
        self._wake.set()

    def hurry(self) -> None:
        """Give jobs no more time at the end; may be called from a signal's handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._hurried.set)

    async def run(self) -> None:
        """Until cancelled."""
        self._loop = asyncio.get_running_loop()
        tidy_at = 0.0
        while True:
            self._wake.clear()
            try:
                await self.tick()
                if time.monotonic() >= tidy_at:
                    tidy_at = time.monotonic() + _TIDY_S
                    await asyncio.to_thread(self._tidy)
            except StoreError as error:  # the disk is full, say: jobs go on in Ray, and are followed when it is not
                self._link.say(error.message)
            except Exception as error:  # noqa: BLE001 - what is wrong in a new way must not end all jobs for good
                log.failure("tick_failed", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK_S)

    def _tidy(self) -> None:
        tidy(self._store, most=self._settings.keep, days=self._settings.keep_days)

    async def tick(self) -> None:
        """One look at everything."""
        try:
            ray = await self._link.reach()
            for job in await asyncio.to_thread(self._store.submitted):
                await self._guarded(ray, job, self._follow(ray, job))
            for job in await asyncio.to_thread(self._store.waiting, self._at_once):
                if len(await asyncio.to_thread(self._store.submitted)) >= self._at_once:
                    break
                await self._guarded(ray, job, self._begin(ray, job))
        except RayError as error:
            await self._link.away(error)
            return
        self._link.well()

    async def end(self) -> None:
        """The service ends: on a Ray of our own, jobs are stopped, to be begun again at the next start.

        Each has the grace for its checkpoint, unless `hurry` is called. On a cluster they go on, and are found again.
        """
        if self._link.head is None:
            await self._link.close()
            return
        try:
            if self._link.client is not None:
                await self._in_time(self._stop_all(self._link.client))
                await self._link.close()
        except StoreError as error:  # the next start finds that its Ray does not know them, and begins them again
            self._link.say(error.message)
        finally:
            await asyncio.to_thread(self._link.head.end)

    async def _in_time(self, stopping: Coroutine[Any, Any, None]) -> None:
        """Wait for the jobs' end, their grace at most, and no longer than until one hurries."""
        stop, hurry = asyncio.create_task(stopping), asyncio.create_task(self._hurried.wait())
        limit = self._settings.grace_s + _MARGIN_S
        try:
            await asyncio.wait({stop, hurry}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stop, hurry):
                task.cancel()
        with contextlib.suppress(RayError, asyncio.CancelledError):
            await stop

    async def _stop_all(self, ray: RayJobs) -> None:
        under_way = await asyncio.to_thread(self._store.submitted)
        for job in under_way:
            log.info("job_interrupted", job=job.id)
            try:
                JobFiles(self._settings.jobs, job.id).interrupt(job.submission or "")
            except OSError as error:
                log.warning("job_not_noted", job=job.id, reason=error.strerror)
            with contextlib.suppress(RayError):
                await ray.stop(job.submission or "")
        for job in under_way:
            with contextlib.suppress(BadAnswer):  # the next start finds that its Ray does not know it
                while (attempt := await ray.find(job.submission or "")) and attempt.status in _UNDER_WAY:
                    await asyncio.sleep(0.2)
                if attempt is not None and (job.cancelling or attempt.status == "SUCCEEDED" or by_itself(attempt)):
                    await self._ended(job, attempt)  # it came to its own end in this very moment
                else:
                    await self._again(job)

    async def _guarded(self, ray: RayJobs, job: Job, step: Coroutine[Any, Any, None]) -> None:
        """One job that is wrong must not keep the others from their turn.

        Raises:
            RayError: it is not this job: Ray answers nobody.
        """
        try:
            await step
        except BadAnswer as error:
            await ray.answers()
            reason = error.message.rpartition("; ")[0] or error.message.rstrip(".")  # without its advice
            await self._fault(ray, job, reason, final=error.final)
        except (RayError, StoreError):
            raise
        except OSError as error:
            directory = JobFiles(self._settings.jobs, job.id).directory
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # the job waits until there is room
                raise StoreError(f"jobs directory '{directory}': {error.strerror}; make room on the disk.") from error
            detail = f"its files in '{directory}' cannot be used ({error.strerror}); see the access rights"
            await self._end(job, "failed", error=f"{detail}.")
        except Exception as error:  # noqa: BLE001 - likewise where it is our own fault
            log.failure("job_step_failed", error)
            await self._fault(ray, job, f"{type(error).__name__}: {error}")
        else:
            self._faults.pop(job.id, None)

    async def _fault(self, ray: RayJobs, job: Job, reason: str, *, final: bool = False) -> None:
        """A step of a job went wrong: it is tried again, and the job given up where that lasts."""
        if job.id not in self._faults:
            log.warning("job_waits", job=job.id, reason=reason)
        since = self._faults.setdefault(job.id, time.monotonic())
        if not final and time.monotonic() - since < self._patience_s:
            return
        current = await asyncio.to_thread(self._store.get, job.id)
        with contextlib.suppress(RayError):  # it may run all the same
            await ray.stop((current or job).submission or "")
        lasting = "" if final else f" for {self._patience_s:g} s"
        await self._end(
            job, "failed", error=f"Ray does not run it{lasting} ({reason}); see Ray's logs, and post it again."
        )

    async def _begin(self, ray: RayJobs, waiting: Job) -> None:
        attempt = waiting.attempt + 1
        submission = f"{waiting.id}-{attempt}"
        # Written down first: a submission that we are killed after is found again, one that we are killed before is not
        # known to Ray and begun anew.
        job = await asyncio.to_thread(self._store.update, waiting, attempt=attempt, submission=submission)
        if job is None:  # cancelled in this moment
            return
        await self._submit(ray, job)

    async def _submit(self, ray: RayJobs, job: Job) -> None:
        entrypoint = await asyncio.to_thread(JobFiles(self._settings.jobs, job.id).prepare, job)
        environment = self._environment_of(job)
        await ray.submit(job.submission or "", entrypoint, share=job.share, environment=environment)
        log.info("job_submitted", job=job.id, attempt=job.attempt)

    def _environment_of(self, job: Job) -> dict[str, str]:
        # Read by Ray where the job runs: on a cluster, too.
        environment = {**self._environment, "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(self._settings.grace_s))}
        if job.kind != "sweep" and not job.share.gpus:
            environment["STRIDE_DEVICE"] = "cpu"  # where there are GPUs, they are other jobs'
        return environment

    async def _follow(self, ray: RayJobs, job: Job) -> None:
        attempt = await ray.find(job.submission or "")
        if attempt is None and job.state == "queued" and not job.cancelling:  # we were killed before Ray was told
            await self._submit(ray, job)
            return
        if attempt is None:  # another Ray than then
            log.warning("job_lost", job=job.id, attempt=job.attempt, reason="this Ray does not know it")
            await self._again(job)
            return
        if attempt.status in _UNDER_WAY:
            if job.cancelling and job.submission not in self._stopped:
                await ray.stop(job.submission or "")
                self._stopped.add(job.submission or "")
            if attempt.status == "RUNNING":
                await self._progress(job)
            return
        await self._ended(job, attempt)

    async def _progress(self, job: Job) -> None:
        changes: dict[str, object] = {}
        if job.state == "queued":
            changes |= {"state": "running", "started": job.started or time.time()}
        runs = await asyncio.to_thread(JobFiles(self._settings.jobs, job.id).runs)
        if runs != job.runs:
            changes["runs"] = runs
        if changes:
            await asyncio.to_thread(lambda: self._store.update(job, **changes))

    async def _ended(self, job: Job, attempt: Attempt) -> None:
        """An attempt has ended: so has the job, or it is begun again."""
        self._stopped.discard(job.submission or "")
        files = JobFiles(self._settings.jobs, job.id)
        if job.started is None:  # it was over between two looks
            updated = await asyncio.to_thread(self._store.update, job, started=time.time())
            job = updated or job
        found = outcome(job, attempt, files, most_losses=self._settings.losses)
        if found.state is not None:
            await self._end(job, found.state, error=found.error, result=found.result)
        elif found.lost is None:
            await self._again(job)
        else:
            log.warning("job_lost", job=job.id, attempt=job.attempt, reason=found.lost)
            files.note(f"attempt {job.attempt} was lost: {found.lost}; it is begun again")
            await self._again(job, losses=job.losses + 1)

    async def _end(self, job: Job, state: State, **changes: object) -> None:
        self._faults.pop(job.id, None)
        runs = JobFiles(self._settings.jobs, job.id).runs()
        ended = await asyncio.to_thread(lambda: self._store.end(job, state, runs=runs, **changes))
        if ended is not None:
            self._metrics.ended.labels(job.kind, state).inc()
            log.info("job_ended", job=job.id, state=state, error=ended.error)

    async def _again(self, job: Job, **changes: object) -> None:
        if job.cancelling:
            await self._end(job, "cancelled")
            return
        await asyncio.to_thread(lambda: self._store.update(job, state="queued", submission=None, **changes))
        self.wake()
