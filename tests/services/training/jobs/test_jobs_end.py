"""services.training.jobs.runner: the end of the service, and what becomes of the jobs that run then."""

from __future__ import annotations

import asyncio
import shutil
import time

import pytest

from services.training.jobs.errors import BadAnswer
from services.training.jobs.files import JobFiles
from services.training.jobs.runner import Runner
from services.training.jobs.store import Store
from tests.services.training.jobs.conftest import FakeHead, FakeRay, MakeJob, make_runner, now, tick


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


def test_who_hurries_does_not_wait_for_the_jobs_and_they_go_on_at_the_next_start(
    store: Store, make_job: MakeJob, ray: FakeRay
) -> None:
    job, head = make_job(), FakeHead()
    runner = make_runner(store, ray, head=head, STRIDE_JOBS_GRACE_SECONDS="60")
    tick(runner)
    ray.says(f"{job.id}-1", "RUNNING")

    async def end() -> None:
        running = asyncio.create_task(runner.run())
        await asyncio.sleep(0.05)
        running.cancel()
        ending = asyncio.create_task(runner.end())
        await asyncio.sleep(0.05)
        assert not ending.done()
        runner.hurry()
        await asyncio.wait_for(ending, 5)

    began = time.monotonic()
    asyncio.run(end())
    assert time.monotonic() - began < 10
    assert (head.ended, ray.stopped) == (True, [f"{job.id}-1"])
    ray.attempts.clear()  # the next head is another one
    tick(make_runner(store, ray, head=FakeHead()))
    assert list(ray.attempts) == [f"{job.id}-2"]


def test_an_error_about_one_job_does_not_hide_that_another_has_just_succeeded(
    store: Store, make_job: MakeJob, ray: FakeRay
) -> None:
    runner = make_runner(store, ray, at_once=2, head=FakeHead())
    broken, good = make_job(), make_job()
    tick(runner)
    ray.broken[f"{broken.id}-1"] = BadAnswer("HTTP 500.")
    ray.says(f"{good.id}-1", "SUCCEEDED", 0)
    asyncio.run(runner.end())
    assert (now(store, good).state, now(store, broken).state) == ("succeeded", "queued")
