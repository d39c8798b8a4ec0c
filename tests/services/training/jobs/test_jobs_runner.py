"""services.training.jobs.runner: what becomes of a job for everything that Ray may say, or not say.

Ray is a dictionary here, behind the methods of RayJobs; tests/pipelines/test_training_service.py has a real one.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.training.jobs.errors import RayError
from services.training.jobs.files import JobFiles
from services.training.jobs.job import Job, Share
from services.training.jobs.metrics import Metrics
from services.training.jobs.ray_jobs import Attempt, RayJobs
from services.training.jobs.runner import Runner
from services.training.jobs.settings import read
from services.training.jobs.store import Store

MakeJob = Callable[..., Job]


@dataclass
class FakeRay:
    """A cluster: what was submitted, and what it says of each."""

    address: str = "http://cluster"
    attempts: dict[str, Attempt] = field(default_factory=dict)
    environments: dict[str, Mapping[str, str]] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    away: bool = False

    def says(self, submission: str, status: Any, exit_code: int | None = None, reason: str | None = None) -> None:
        self.attempts[submission] = Attempt(status=status, exit_code=exit_code, reason=reason, message="")

    async def answers(self) -> None:
        self._check()

    async def submit(self, submission: str, _: str, *, share: Share, environment: Mapping[str, str]) -> None:
        self._check()
        self.environments[submission], self.shares[submission] = environment, share
        self.says(submission, "PENDING")

    async def find(self, submission: str) -> Attempt | None:
        self._check()
        return self.attempts.get(submission)

    async def stop(self, submission: str) -> None:
        self._check()
        self.stopped.append(submission)

    async def close(self) -> None:
        pass

    def _check(self) -> None:
        if self.away:
            raise RayError("Ray at http://cluster does not answer (refused); see whether it runs.")


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def runner(store: Store, ray: FakeRay) -> Runner:
    return make_runner(store, ray)


@dataclass
class FakeHead:
    """A Ray of our own, which outlives a runner that is killed."""

    ended: bool = False

    def running(self) -> str:
        return FakeRay.address

    def end(self) -> None:
        self.ended = True


def make_runner(
    store: Store, ray: FakeRay, *, at_once: int = 1, head: FakeHead | None = None, **variables: str
) -> Runner:
    environment = {"STRIDE_HOME": str(store.directory.parent), "RAY_ADDRESS": "http://cluster", **variables}

    def connect(_: str) -> RayJobs:
        return ray  # type: ignore[return-value] # the same methods

    return Runner(
        read(environment),
        store,
        head=head,  # type: ignore[arg-type] # the same methods
        at_once=at_once,
        environment={"STRIDE_HOME": "/home"},
        connect=connect,
        metrics=Metrics(),
    )


def tick(runner: Runner, times: int = 1) -> None:
    async def ticks() -> None:
        for _ in range(times):
            await runner.tick()

    asyncio.run(ticks())


def now(store: Store, job: Job) -> Job:
    found = store.get(job.id)
    assert found is not None
    return found


def ended(store: Store, runner: Runner, ray: FakeRay, job: Job, *said: Any) -> Job:
    """The job after its attempt has run and Ray has said that."""
    tick(runner)
    ray.says(f"{job.id}-1", "RUNNING")
    tick(runner)
    ray.says(f"{job.id}-1", *said)
    tick(runner)
    return now(store, job)


def test_a_job_is_handed_over_once_and_is_queued_until_ray_runs_it(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    job = make_job()
    tick(runner, 3)
    assert list(ray.attempts) == [f"{job.id}-1"]
    assert (now(store, job).state, now(store, job).attempt) == ("queued", 1)
    ray.says(f"{job.id}-1", "RUNNING")
    tick(runner)
    assert now(store, job).state == "running"
    assert now(store, job).started is not None


def test_no_more_jobs_than_allowed_are_with_ray(store: Store, make_job: MakeJob, ray: FakeRay) -> None:
    runner = make_runner(store, ray, at_once=2)
    jobs = [make_job() for _ in range(4)]
    tick(runner, 3)
    assert list(ray.attempts) == [f"{job.id}-1" for job in jobs[:2]]
    ray.says(f"{jobs[0].id}-1", "SUCCEEDED", 0)
    tick(runner)
    assert list(ray.attempts) == [f"{job.id}-1" for job in jobs[:3]]


def test_ray_is_told_the_share_and_the_grace_and_a_job_without_a_gpu_gets_none(
    store: Store, make_job: MakeJob, ray: FakeRay
) -> None:
    runner = make_runner(store, ray, at_once=3, STRIDE_JOBS_GRACE_SECONDS="7")
    cpu, gpu = make_job(share=Share(cpus=2)), make_job(share=Share(cpus=2, gpus=0.5))
    sweep = make_job(kind="sweep")
    tick(runner)
    assert ray.shares[f"{gpu.id}-1"] == Share(cpus=2, gpus=0.5)
    assert ray.environments[f"{gpu.id}-1"] == {"STRIDE_HOME": "/home", "RAY_JOB_STOP_WAIT_TIME_S": "7"}
    assert ray.environments[f"{cpu.id}-1"]["STRIDE_DEVICE"] == "cpu"
    assert "STRIDE_DEVICE" not in ray.environments[f"{sweep.id}-1"]  # its trials ask for GPUs of their own


def test_the_answer_of_the_command_is_the_result(store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay) -> None:
    job = make_job()
    files = JobFiles(store.directory, job.id)
    files.directory.mkdir()
    (files.directory / "answer.json").write_text('{"run_id": "r2", "test_accuracy": 0.9}')
    (files.directory / "runs").write_text("r1\nr2\n")
    found = ended(store, runner, ray, job, "SUCCEEDED", 0)
    assert (found.state, found.error, found.runs) == ("succeeded", None, ("r1", "r2"))
    assert found.result == {"run_id": "r2", "test_accuracy": 0.9}
    assert found.submission is None


@pytest.mark.parametrize(
    ("kind", "answer", "code", "state", "error"),
    [
        ("ship", '{"verdict": "refused", "reasons": ["best of 1", "0.41 is low"]}', 2, "refused", "0.41 is low"),
        ("ship", "", 2, "failed", "data.path is wrong."),
        ("train", '{"verdict": "refused"}', 2, "failed", "data.path is wrong."),
        ("train", "", 1, "failed", "data.path is wrong."),
    ],
)  # fmt: skip
def test_a_refusal_by_the_gate_is_not_a_failure(
    store: Store,
    make_job: MakeJob,
    runner: Runner,
    ray: FakeRay,
    kind: str,
    answer: str,
    code: int,
    state: str,
    error: str,
) -> None:
    job = make_job(kind=kind)
    files = JobFiles(store.directory, job.id)
    files.directory.mkdir()
    (files.directory / "answer.json").write_text(answer)
    files.log.write_text("--- attempt 1 begins\nerror: data.path is wrong.\n")
    found = ended(store, runner, ray, job, "FAILED", code, "JOB_ENTRYPOINT_COMMAND_ERROR")
    assert (found.state, found.error) == (state, error)


def test_a_command_that_ends_without_a_word_is_told_by_its_exit_code(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    found = ended(store, runner, ray, make_job(), "FAILED", 5)
    assert found.error == "the command ended with exit code 5; its log says more."


@pytest.mark.parametrize(
    ("code", "reason", "how"),
    [
        (-9, "JOB_ENTRYPOINT_COMMAND_ERROR", "SIGKILL, as the system does where memory is short"),
        (143, "JOB_ENTRYPOINT_COMMAND_ERROR", "SIGTERM"),
        (75, "JOB_ENTRYPOINT_COMMAND_ERROR", "a process of an earlier attempt that does not end"),
        (None, "JOB_SUPERVISOR_ACTOR_DIED", "Ray (JOB_SUPERVISOR_ACTOR_DIED)"),
    ],
)
def test_a_lost_process_is_begun_again_but_not_for_ever(
    store: Store, make_job: MakeJob, ray: FakeRay, code: int | None, reason: str, how: str
) -> None:
    runner = make_runner(store, ray, STRIDE_JOBS_LOSSES="2")
    job = make_job()
    for attempt in (1, 2):
        tick(runner)
        ray.says(f"{job.id}-{attempt}", "FAILED", code, reason)
        tick(runner)
        assert (now(store, job).state, now(store, job).losses) == ("queued", attempt)
    tick(runner)
    ray.says(f"{job.id}-3", "FAILED", code, reason)
    tick(runner)
    found = now(store, job)
    assert found.state == "failed"
    assert found.error == (
        f"its process was lost 3 times, the last time by {how}; "
        "see its log; out of memory, a smaller fit.batch_size may help."
    )
    assert f"attempt 1 was lost: {how}; it is begun again" in JobFiles(store.directory, job.id).log.read_text()


def test_a_cancelled_job_is_stopped_once_and_ends_as_cancelled(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    job = make_job()
    tick(runner)
    ray.says(f"{job.id}-1", "RUNNING")
    store.cancel(job.id)
    tick(runner, 3)
    assert ray.stopped == [f"{job.id}-1"]
    ray.says(f"{job.id}-1", "STOPPED")
    tick(runner)
    assert (now(store, job).state, now(store, job).error) == ("cancelled", None)


def test_a_job_that_was_done_before_it_could_be_cancelled_has_succeeded(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    job = make_job()
    tick(runner)
    store.cancel(job.id)
    ray.says(f"{job.id}-1", "SUCCEEDED", 0)
    tick(runner)
    assert now(store, job).state == "succeeded"


def test_who_stops_a_job_through_ray_has_cancelled_it(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    found = ended(store, runner, ray, make_job(), "STOPPED")
    assert (found.state, found.error) == ("cancelled", "it was stopped through Ray, not through this service.")


def test_jobs_that_a_new_ray_does_not_know_are_begun_again_in_their_order(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    first, second = make_job(), make_job()
    tick(runner)
    ray.says(f"{first.id}-1", "RUNNING")
    tick(runner)
    ray.attempts.clear()
    tick(runner)
    assert list(ray.attempts) == [f"{first.id}-2"]
    assert (now(store, first).losses, now(store, first).attempt) == (0, 2)
    assert now(store, second).attempt == 0


def test_a_submission_that_ray_was_never_told_is_told_again_under_its_name(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    job = make_job()
    store.update(job, attempt=1, submission=f"{job.id}-1")  # and then the service was killed
    tick(runner)
    assert list(ray.attempts) == [f"{job.id}-1"]
    assert now(store, job).attempt == 1


def test_a_job_that_was_being_cancelled_when_ray_died_is_cancelled(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    job = make_job()
    tick(runner)
    store.cancel(job.id)
    ray.attempts.clear()
    tick(runner)
    assert now(store, job).state == "cancelled"


def test_jobs_stay_what_they_are_while_ray_is_away(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    job = make_job()
    tick(runner)
    ray.says(f"{job.id}-1", "RUNNING")
    tick(runner)
    ray.away = True
    tick(runner, 2)
    assert runner.problem == "Ray at http://cluster does not answer (refused); see whether it runs."
    with pytest.raises(RayError, match="does not answer"):
        asyncio.run(runner.check())
    assert now(store, job).state == "running"
    ray.away = False
    tick(runner)
    asyncio.run(runner.check())  # raises while there is a problem


def test_on_a_cluster_jobs_go_on_without_the_service(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    job = make_job()
    tick(runner)
    ray.says(f"{job.id}-1", "RUNNING")
    tick(runner)
    asyncio.run(runner.end())
    assert ray.stopped == []
    assert now(store, job).state == "running"


def test_a_job_that_was_being_stopped_with_a_service_that_was_then_killed_is_begun_again(
    store: Store, make_job: MakeJob, ray: FakeRay
) -> None:
    job = make_job()
    killed = make_runner(store, ray, head=FakeHead())
    tick(killed)
    ray.says(f"{job.id}-1", "RUNNING")
    tick(killed)
    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(killed.end(), 0.3))
    assert ray.stopped == [f"{job.id}-1"]
    following = make_runner(store, ray, head=FakeHead())
    tick(following)  # it is still at its checkpoint
    ray.says(f"{job.id}-1", "STOPPED")
    tick(following)
    assert (now(store, job).state, now(store, job).attempt, now(store, job).losses) == ("queued", 2, 0)
    ray.says(f"{job.id}-2", "STOPPED")  # this time by somebody else
    tick(following)
    assert now(store, job).state == "cancelled"


def test_the_head_is_ended_with_the_service_where_jobs_cannot_be_noted(
    store: Store, make_job: MakeJob, ray: FakeRay
) -> None:
    job, head = make_job(), FakeHead()
    runner = make_runner(store, ray, head=head)
    tick(runner)
    ray.says(f"{job.id}-1", "SUCCEEDED", 0)
    directory = JobFiles(store.directory, job.id).directory
    shutil.rmtree(directory)
    directory.write_text("a file where its directory should be")
    asyncio.run(runner.end())
    assert (head.ended, ray.stopped) == (True, [f"{job.id}-1"])
    assert now(store, job).state == "succeeded"


def test_a_job_whose_files_cannot_be_written_fails_and_the_next_one_begins(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    broken, good = make_job(), make_job()
    (store.directory / broken.id).write_text("a file where its directory should be")
    tick(runner, 2)
    assert now(store, broken).state == "failed"
    assert "cannot be used (File exists); see the access rights." in (now(store, broken).error or "")
    assert list(ray.attempts) == [f"{good.id}-1"]
