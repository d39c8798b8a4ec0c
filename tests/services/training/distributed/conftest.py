"""Real workers without the price of an import: processes forked from the test's, which meet at a file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch.distributed as dist

from services.training.distributed.place import Place
from services.training.distributed.workers import Workers

Job = Callable[[Workers], Any]


class Together(Protocol):
    def __call__(self, workers: int, job: Job) -> list[Any]: ...


@pytest.fixture
def together(tmp_path: Path) -> Together:
    """A function: what a job gives in each of so many workers, from the first; what it raises, it gives."""

    def run(workers: int, job: Job) -> list[Any]:
        fork = multiprocessing.get_context("fork")
        ends, processes = [], []
        for rank in range(workers):
            here, there = fork.Pipe(duplex=False)
            process = fork.Process(target=_work, args=(job, rank, workers, tmp_path / "meeting", there))
            process.start()
            there.close()
            ends.append(here)
            processes.append(process)
        # Pickled by hand: multiprocessing would send tensors as memory of a process that is gone by then
        answers = [pickle.loads(end.recv_bytes()) if end.poll(60) else TimeoutError() for end in ends]  # noqa: S301
        for process in processes:
            process.join(10)
            process.kill()
        (tmp_path / "meeting").unlink(missing_ok=True)
        return answers

    return run


def _work(job: Job, rank: int, workers: int, meeting: Path, end: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(meeting), workers)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=workers, timeout=timedelta(seconds=30))
    place = Place(rank=rank, size=workers, local_rank=rank, address="", port=0, restarts=0, hosted=False)
    try:
        answer = job(Workers(place, "cpu"))
    except BaseException as error:  # noqa: BLE001 - the test asks for it
        answer = error
    end.send_bytes(pickle.dumps(answer))
    end.close()
    os._exit(0)
