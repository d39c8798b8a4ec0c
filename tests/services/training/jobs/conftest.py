"""A store, and a job in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.training.jobs.job import Job, Share, Work
from services.training.jobs.store import Store

MakeJob = Callable[..., Job]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "jobs")
    yield opened
    opened.close()


@pytest.fixture
def make_job(store: Store) -> MakeJob:
    """Queues a job whose command is `true`; keywords go to Store.create."""

    def make(command: tuple[str, ...] = ("/bin/true",), **given: Any) -> Job:
        work = Work(recipe="digits", model_name="digits", document="name: digits\n", command=command)
        options: dict[str, Any] = {"kind": "train", "share": Share(), "request": {}, "digest": "d", "key": None}
        job, _ = store.create(work=work, most_waiting=1000, **{**options, **given})
        return job

    return make
