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
from services.training.jobs.errors import RayError, StoreError
from services.training.jobs.files import JobFiles
from services.training.jobs.head import OwnHead
from services.training.jobs.job import Job, State
from services.training.jobs.launch import BUSY
from services.training.jobs.metrics import Metrics
from services.training.jobs.ray_jobs import Attempt, RayJobs
from services.training.jobs.settings import Settings
from services.training.jobs.store import Store

TICK_S: Final = 1.0
_BACKOFF_S: Final = 5.0
"""After a head that could not be started."""
_MARGIN_S: Final = 3.0
"""Beside the jobs' grace, for Ray to see them end."""
_SILENCE_S: Final = 20.0
"""How long a head of our own may be alive and not answer before it is replaced."""
_TERMINATED: Final = frozenset({143, -15})
_KILLED: Final = frozenset({137, -9})
_REFUSED: Final = 2


class Runner:
    """Begins and follows the jobs of one store.

    Args:
        settings: The service's.
        store: Its jobs.
        head: The Ray of our own, None where `client` is for a cluster.
        at_once: Jobs that are with Ray at the same time.
        environment: Variables for the jobs.
        connect: Makes the client for a head's address.
        metrics: Counts the jobs that end.
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
    ) -> None:
        self._settings, self._store, self._head = settings, store, head
        self._at_once, self._environment, self._connect = at_once, environment, connect
        self._metrics = metrics
        self._ray: RayJobs | None = None
        self._answered = time.monotonic()
        self.problem: str | None = "Ray is being started"
        """Why no job can be begun or followed now; None where all is well."""
        self._wake = asyncio.Event()
        self._stopped: set[str] = set()
        """Submissions that were told to stop; a kill of the service forgets them, and tells them again."""

    def wake(self) -> None:
        """There is something to do: do not wait for the next tick."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.tick()
            except StoreError as error:  # the disk is full, say: jobs go on in Ray, and are followed when it is not
                self._say(error.message)
            except Exception as error:  # noqa: BLE001 - one job that is wrong in a new way must not end all others
                log.failure("tick_failed", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), TICK_S)

    async def check(self) -> None:
        """Raise RayError unless a job could be begun now."""
        if self.problem is not None or self._ray is None:
            raise RayError(self.problem or "Ray is being started")
        await self._ray.answers()

    async def tick(self) -> None:
        """One look at everything."""
        try:
            ray = await self._reach()
            for job in await asyncio.to_thread(self._store.submitted):
                await self._guarded(job, self._follow(ray, job))
            for job in await asyncio.to_thread(self._store.waiting, self._at_once):
                if len(await asyncio.to_thread(self._store.submitted)) >= self._at_once:
                    break
                await self._guarded(job, self._begin(ray, job))
        except RayError as error:
            self._say(error.message)
            if self._head is not None and self._ray is not None and time.monotonic() - self._answered > _SILENCE_S:
                await self._leave()
                await asyncio.to_thread(self._head.end)
            return
        self._answered = time.monotonic()
        self.problem = None

    async def _guarded(self, job: Job, step: Coroutine[Any, Any, None]) -> None:
        """One job whose files are wrong must not keep the others from their turn."""
        try:
            await step
        except OSError as error:
            directory = JobFiles(self._settings.jobs, job.id).directory
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # the job waits until there is room
                raise StoreError(f"jobs directory '{directory}': {error.strerror}; make room on the disk.") from error
            detail = f"its files in '{directory}' cannot be used ({error.strerror}); see the access rights"
            await self._end(job, "failed", error=f"{detail}.")

    async def end(self) -> None:
        """The service ends: on a Ray of our own, jobs are stopped, to be begun again at the next start.

        Each has the grace for its checkpoint. On a cluster they go on, and are found again.
        """
        if self._head is None:
            if self._ray is not None:
                await self._ray.close()
            return
        try:
            if self._ray is not None:
                with contextlib.suppress(RayError, TimeoutError):
                    await asyncio.wait_for(self._stop_all(self._ray), self._settings.grace_s + _MARGIN_S)
                await self._ray.close()
        except StoreError as error:  # the next start finds that its Ray does not know them, and begins them again
            self._say(error.message)
        finally:
            await asyncio.to_thread(self._head.end)

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
            while (attempt := await ray.find(job.submission or "")) and attempt.status in ("PENDING", "RUNNING"):
                await asyncio.sleep(0.2)
            if attempt is not None and (job.cancelling or attempt.status == "SUCCEEDED" or _verdict(attempt)):
                await self._ended(job, attempt)  # it came to its own end in this very moment
            else:
                await self._again(job)

    async def _reach(self) -> RayJobs:
        """The client of a Ray that answers; a head of our own is started where there is none.

        Raises:
            RayError: there is none, and why.
        """
        if self._ray is not None and (self._head is None or self._head.running() == self._ray.address):
            return self._ray
        await self._leave()
        if self._head is None:
            ray = self._connect(self._settings.ray_address or "")
            try:
                await ray.answers()
            except RayError:
                await ray.close()
                raise
            self._ray = ray
            return ray
        address = self._head.running()
        if address is not None:
            log.info("ray_taken_over", address=address)
        else:
            self._say("Ray is being started")
            try:
                address = await self._head.start()
            except RayError:
                await asyncio.sleep(_BACKOFF_S)
                raise
            log.info("ray_started", address=address)
        self._answered = time.monotonic()
        self._ray = self._connect(address)
        return self._ray

    async def _leave(self) -> None:
        if self._ray is not None:
            await self._ray.close()
            self._ray = None

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
        if attempt.status in ("PENDING", "RUNNING"):
            if job.cancelling and job.submission not in self._stopped:
                self._stopped.add(job.submission or "")
                await ray.stop(job.submission or "")
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
        if attempt.status == "SUCCEEDED":
            await self._end(job, "succeeded", result=files.answer())
        elif job.cancelling:
            await self._end(job, "cancelled")
        elif attempt.status == "STOPPED" and files.interrupted(job.submission or ""):  # and then we were killed
            await self._again(job)
        elif attempt.status == "STOPPED":
            await self._end(job, "cancelled", error="it was stopped through Ray, not through this service.")
        elif _verdict(attempt):
            await self._judge(job, attempt.exit_code, files)
        elif job.losses >= self._settings.losses:
            detail = f"its process was lost {job.losses + 1} times, the last time by {_how(attempt)}"
            advice = "see its log; out of memory, a smaller fit.batch_size may help"
            await self._end(job, "failed", error=f"{detail}; {advice}.")
        else:
            log.warning("job_lost", job=job.id, attempt=job.attempt, reason=_how(attempt))
            files.note(f"attempt {job.attempt} was lost: {_how(attempt)}; it is begun again")
            await self._again(job, losses=job.losses + 1)

    async def _judge(self, job: Job, exit_code: int | None, files: JobFiles) -> None:
        """The command said by its exit code what came of it."""
        answer = files.answer()
        if exit_code == _REFUSED and job.kind == "ship" and answer is not None and answer.get("verdict") == "refused":
            reasons = answer.get("reasons") or ["the gate gave no reason"]
            await self._end(job, "refused", result=answer, error=str(reasons[-1]))
        else:
            sentence = files.error() or f"the command ended with exit code {exit_code}; its log says more."
            await self._end(job, "failed", result=answer, error=sentence)

    async def _end(self, job: Job, state: State, **changes: object) -> None:
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

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("cannot_run_jobs", reason=problem)
        self.problem = problem


def _verdict(attempt: Attempt) -> bool:
    """Whether the command ended by itself: it was not killed, told to stop, or lost with its node."""
    code = attempt.exit_code
    return attempt.status == "FAILED" and code is not None and code not in _TERMINATED | _KILLED | {BUSY}


def _how(attempt: Attempt) -> str:
    if attempt.exit_code in _KILLED:
        return "SIGKILL, as the system does where memory is short"
    if attempt.exit_code in _TERMINATED:
        return "SIGTERM"
    if attempt.exit_code == BUSY:
        return "a process of an earlier attempt that does not end"
    return f"Ray ({attempt.reason or 'no reason given'})"
