"""services.training.jobs.retention: what is forgotten, and what never is."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from services.training.jobs.errors import KeyReused
from services.training.jobs.files import JobFiles
from services.training.jobs.job import Job
from services.training.jobs.retention import DAY_S, tidy
from services.training.jobs.store import Store
from tests.services.training.jobs.conftest import FakeRay, MakeJob, make_runner


def end(store: Store, job: Job, *, days_ago: float = 0.0) -> Path:
    """The directory of the job, which has ended."""
    files = JobFiles(store.directory, job.id)
    files.note("a line")
    store.update(job, state="failed", ended=time.time() - days_ago * DAY_S)
    return files.directory


def known(store: Store) -> list[str]:
    return [job.id for job in store.page(state=None, before=None, limit=100)][::-1]


def test_the_newest_ended_jobs_are_kept_and_the_others_go_with_their_logs(store: Store, make_job: MakeJob) -> None:
    jobs = [make_job() for _ in range(5)]
    directories = [end(store, job) for job in jobs]
    assert tidy(store, most=2, days=90) == 3
    assert known(store) == [job.id for job in jobs[3:]]
    assert [path.exists() for path in directories] == [False, False, False, True, True]
    assert tidy(store, most=2, days=90) == 0


def test_a_job_that_ended_too_long_ago_goes(store: Store, make_job: MakeJob) -> None:
    old, new = make_job(), make_job()
    end(store, old, days_ago=91)
    end(store, new, days_ago=89)
    tidy(store, most=100, days=90)
    assert known(store) == [new.id]


def test_what_waits_or_runs_is_never_forgotten(store: Store, make_job: MakeJob) -> None:
    waiting, running, done = make_job(), make_job(), make_job()
    store.update(running, state="running", attempt=1, submission="s", ended=1.0)  # a time that no such job has
    end(store, done, days_ago=1000)
    tidy(store, most=1, days=1)
    store.forget([waiting.id, running.id])
    assert known(store) == [waiting.id, running.id]


def test_a_key_is_known_as_long_as_its_job(store: Store, make_job: MakeJob) -> None:
    job = make_job(key="night-1")
    end(store, job)
    with pytest.raises(KeyReused):
        make_job(key="night-1", digest="other")
    tidy(store, most=1, days=90)
    assert make_job(key="night-1").id == job.id
    end(store, make_job())
    tidy(store, most=1, days=90)
    assert make_job(key="night-1").id != job.id


def test_a_job_whose_files_cannot_be_removed_stays_and_the_others_go(
    store: Store, make_job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, other = make_job(), make_job()
    for job in (stuck, other):
        store.end(job, "cancelled")
    JobFiles(store.directory, stuck.id).directory.write_text("a file where its directory should be")
    end(store, make_job())
    tidy(store, most=1, days=90)
    assert stuck.id in known(store)
    assert other.id not in known(store)


def test_a_killed_look_is_finished_by_the_next(
    store: Store, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job()
    directory = end(store, job, days_ago=2)
    with monkeypatch.context() as patched:
        patched.setattr(store, "forget", _killed)
        with pytest.raises(KeyboardInterrupt):
            tidy(store, most=1, days=1)
    assert not directory.exists()
    assert known(store) == [job.id]
    assert tidy(store, most=1, days=1) == 1
    assert known(store) == []


def _killed(_: object) -> None:
    raise KeyboardInterrupt


def test_the_service_forgets_by_itself_also_where_ray_is_away(store: Store, make_job: MakeJob) -> None:
    end(store, make_job(), days_ago=2)
    runner = make_runner(store, FakeRay(away=True), STRIDE_JOBS_KEEP_DAYS="1")

    async def run() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(runner.run(), 0.5)

    asyncio.run(run())
    assert known(store) == []
