"""services.training.jobs.store: what is written survives, keys give one job, and what has ended stays as it is."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contracts.errors import Overloaded
from services.training.jobs.errors import KeyReused, StoreError
from services.training.jobs.job import Job, Share, Work
from services.training.jobs.store import Store

MakeJob = Callable[..., Job]


def test_a_job_is_the_same_after_the_store_was_opened_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    work = Work(recipe="digits", model_name="digits", document="a: ü\n", command=("stride", "train", "a b"))
    made, new = store.create(
        kind="ship",
        work=work,
        share=Share(cpus=2, gpus=0.5),
        request={"kind": "ship", "set": {"fit.epochs": 3}},
        digest="d",
        key=None,
        most_waiting=1,
    )
    changed = store.update(made, state="running", started=5.0, attempt=1, submission="x-1", runs=("r1", "r2"))
    store.close()
    again = Store(tmp_path)
    assert new
    assert again.get(made.id) == changed
    assert changed is not None
    assert (changed.work, changed.runs, changed.state) == (work, ("r1", "r2"), "running")
    again.close()


def test_a_key_gives_one_job_however_many_ask_at_once(store: Store, make_job: MakeJob) -> None:
    with ThreadPoolExecutor(16) as pool:
        jobs = list(pool.map(lambda _: make_job(key="k"), range(50)))
    assert len({job.id for job in jobs}) == 1
    assert store.counts()["queued"] == 1


def test_a_key_with_another_request_is_refused_with_the_job_that_has_it(store: Store, make_job: MakeJob) -> None:
    job = make_job(key="k", digest="one")
    with pytest.raises(KeyReused, match=f"Idempotency-Key 'k' came with another request before, which is job {job.id}"):
        make_job(key="k", digest="other")
    assert store.counts()["queued"] == 1


def test_a_full_queue_refuses_new_jobs_and_still_knows_its_keys(store: Store, make_job: MakeJob) -> None:
    job = make_job(key="k")
    work, share = job.work, job.share
    options = {"kind": "train", "work": work, "share": share, "request": {}, "digest": "d", "most_waiting": 1}
    with pytest.raises(Overloaded, match="the queue is full: 1 jobs wait"):
        store.create(key=None, **options)  # type: ignore[arg-type]
    assert store.create(key="k", **options) == (job, False)  # type: ignore[arg-type]


def test_jobs_wait_in_the_order_in_which_they_came_and_one_that_was_lost_is_first(
    store: Store, make_job: MakeJob
) -> None:
    first, second, third = make_job(), make_job(), make_job()
    for job in (first, second):
        store.update(job, state="running", attempt=1, submission=f"{job.id}-1")
    assert [job.id for job in store.waiting(9)] == [third.id]
    assert [job.id for job in store.submitted()] == [first.id, second.id]
    store.update(first, state="queued", submission=None)
    assert [job.id for job in store.waiting(9)] == [first.id, third.id]
    assert [job.id for job in store.waiting(1)] == [first.id]


def test_what_has_ended_is_not_changed_any_more(store: Store, make_job: MakeJob) -> None:
    job = make_job()
    ended = store.end(job, "failed", error="why.")
    assert store.update(job, state="running") is None
    assert store.end(job, "cancelled") is None
    store.cancel(job.id)
    assert store.get(job.id) == ended
    assert ended is not None
    assert ended.ended is not None


def test_a_job_that_waits_is_cancelled_at_once_and_one_that_is_with_ray_is_marked(
    store: Store, make_job: MakeJob
) -> None:
    waiting, running = make_job(), make_job()
    store.update(running, attempt=1, submission="s")
    assert store.cancel(waiting.id) is True
    assert store.cancel(waiting.id) is False  # again: it was already
    assert store.cancel(running.id) is False
    found = store.get(waiting.id), store.get(running.id)
    assert [(job.state, job.cancelling) for job in found if job] == [("cancelled", False), ("queued", True)]


def test_pages_go_through_all_jobs_newest_first(store: Store, make_job: MakeJob) -> None:
    made = [make_job() for _ in range(5)]
    store.end(made[1], "failed")
    first = store.page(state=None, before=None, limit=3)
    second = store.page(state=None, before=first[-1].sequence, limit=3)
    assert [job.id for job in first + second] == [job.id for job in reversed(made)]
    assert [job.id for job in store.page(state="failed", before=None, limit=3)] == [made[1].id]


def test_a_second_service_on_the_same_directory_is_refused(store: Store) -> None:
    code = (
        "import sys; from pathlib import Path; from services.training.jobs.store import Store, StoreError\n"
        "try: Store(Path(sys.argv[1]))\nexcept StoreError as error: print(error.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.directory)], capture_output=True, text=True, check=True
    )
    assert "a training service has it open; stop that one" in done.stdout


def test_a_file_that_is_no_data_base_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"no data base" * 100)
    with pytest.raises(
        StoreError, match=r"jobs data base '.*jobs\.db': it cannot be opened \(file is not a database\)"
    ):
        Store(tmp_path)


def test_a_data_base_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "jobs.db") as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(StoreError, match="its version is 2, this is for 1; take the newer Stride"):
        Store(tmp_path)


def test_a_check_tells_of_a_data_base_that_takes_no_writes(tmp_path: Path, store: Store) -> None:
    store.check()
    with sqlite3.connect(tmp_path / "jobs" / "jobs.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        store._connection.execute("PRAGMA busy_timeout = 50")
        with pytest.raises(StoreError, match="database is locked"):
            store.check()
        other.execute("ROLLBACK")
    other.close()
    store.check()
