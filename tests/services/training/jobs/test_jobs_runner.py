"""services.training.jobs.runner: jobs begun in their order and followed, whatever Ray may say, or not say.

Ray is a dictionary here, behind the methods of RayJobs; tests/pipelines/test_training_service.py has a real one.
"""

from __future__ import annotations

import asyncio

import pytest

from services.training.jobs.errors import BadAnswer, RayError
from services.training.jobs.files import JobFiles
from services.training.jobs.job import Share
from services.training.jobs.runner import Runner
from services.training.jobs.store import Store
from tests.services.training.jobs.conftest import FakeRay, MakeJob, make_runner, now, tick


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


def test_a_lost_process_is_begun_again_but_not_for_ever(store: Store, make_job: MakeJob, ray: FakeRay) -> None:
    runner = make_runner(store, ray, STRIDE_JOBS_LOSSES="1")
    job = make_job()
    tick(runner)
    ray.says(f"{job.id}-1", "FAILED", -9)
    tick(runner)
    assert (now(store, job).state, now(store, job).losses) == ("queued", 1)
    assert "attempt 1 was lost: SIGKILL, as the" in JobFiles(store.directory, job.id).log.read_text()
    tick(runner)
    ray.says(f"{job.id}-2", "FAILED", -9)
    tick(runner)
    assert now(store, job).state == "failed"
    assert "its process was lost 2 times" in (now(store, job).error or "")


def test_the_answer_and_the_runs_of_the_command_are_kept(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    job = make_job()
    files = JobFiles(store.directory, job.id)
    files.directory.mkdir()
    (files.directory / "answer.json").write_text('{"run_id": "r2", "test_accuracy": 0.9}')
    (files.directory / "runs").write_text("r1\nr2\n")
    tick(runner)
    ray.says(f"{job.id}-1", "SUCCEEDED", 0)
    tick(runner)
    found = now(store, job)
    assert (found.state, found.error, found.runs) == ("succeeded", None, ("r1", "r2"))
    assert found.result == {"run_id": "r2", "test_accuracy": 0.9}
    assert found.submission is None
    assert found.started is not None


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


def test_a_job_whose_files_cannot_be_written_fails_and_the_next_one_begins(
    store: Store, make_job: MakeJob, runner: Runner, ray: FakeRay
) -> None:
    broken, good = make_job(), make_job()
    (store.directory / broken.id).write_text("a file where its directory should be")
    tick(runner, 2)
    assert now(store, broken).state == "failed"
    assert "cannot be used (File exists); see the access rights." in (now(store, broken).error or "")
    assert list(ray.attempts) == [f"{good.id}-1"]


def test_an_error_about_one_job_keeps_no_other_job_waiting(store: Store, make_job: MakeJob, ray: FakeRay) -> None:
    runner = make_runner(store, ray, at_once=2)
    broken, good, next_one = make_job(), make_job(), make_job()
    tick(runner)
    ray.broken[f"{broken.id}-1"] = BadAnswer("Ray answers HTTP 500 (no agent); see its logs.")
    ray.says(f"{good.id}-1", "SUCCEEDED", 0)
    tick(runner)
    assert runner.problem is None
    assert now(store, good).state == "succeeded"
    assert f"{next_one.id}-1" in ray.attempts
    assert now(store, broken).state == "queued"
    ray.broken.clear()
    ray.says(f"{broken.id}-1", "SUCCEEDED", 0)
    tick(runner)
    assert now(store, broken).state == "succeeded"


def test_a_job_that_ray_goes_on_refusing_is_given_up_and_its_place_is_free(
    store: Store, make_job: MakeJob, ray: FakeRay
) -> None:
    runner = make_runner(store, ray, patience_s=0.0)
    broken, good = make_job(), make_job()
    ray.broken[f"{broken.id}-1"] = BadAnswer("Ray answers HTTP 500 (no agent); see its logs.")
    tick(runner)
    assert now(store, broken).state == "failed"
    assert now(store, broken).error == (
        "Ray does not run it for 0 s (Ray answers HTTP 500 (no agent)); see Ray's logs, and post it again."
    )
    assert ray.stopped == [f"{broken.id}-1"]  # it may have been taken all the same
    tick(runner)
    assert list(ray.attempts) == [f"{good.id}-1"]


def test_a_question_that_is_itself_wrong_is_not_asked_again(store: Store, make_job: MakeJob, ray: FakeRay) -> None:
    runner = make_runner(store, ray)
    job = make_job()
    ray.broken[f"{job.id}-1"] = BadAnswer("Ray answers HTTP 400 (gpus).", final=True)
    tick(runner)
    assert (
        now(store, job).error == "Ray does not run it (Ray answers HTTP 400 (gpus)); see Ray's logs, and post it again."
    )


def test_an_error_that_every_question_gets_is_rays_and_no_jobs(store: Store, make_job: MakeJob, ray: FakeRay) -> None:
    runner = make_runner(store, ray, patience_s=0.0)
    job = make_job()
    ray.broken = {"": BadAnswer("HTTP 502."), f"{job.id}-1": BadAnswer("HTTP 502.")}
    runner._link.client = ray  # type: ignore[assignment] # reached before it broke
    tick(runner, 2)
    assert runner.problem == "HTTP 502."
    assert now(store, job).state == "queued"


def test_a_fault_of_our_own_in_one_job_keeps_no_other_job_waiting(
    store: Store, make_job: MakeJob, ray: FakeRay
) -> None:
    runner = make_runner(store, ray, at_once=2)
    broken, good = make_job(), make_job()
    ray.broken[f"{broken.id}-1"] = KeyError("a bug")
    tick(runner)
    assert list(ray.attempts) == [f"{good.id}-1"]
    assert runner.problem is None
