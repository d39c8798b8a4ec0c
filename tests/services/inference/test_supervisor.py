"""services.inference.supervisor and the start of several workers, as processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from contracts.images import encode_png

StartService = Callable[..., Any]
PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))


def started(service: Any) -> list[int]:
    """The process ids of the workers that have started, in that order."""
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return [line["pid"] for line in lines if line["event"] == "started"]


def children(service: Any) -> set[int]:
    return {
        int(pid) for pid in Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text().split()
    }


def until(met: Callable[[], bool], timeout_s: float) -> None:
    ends = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_dead_worker_is_noticed_at_once_each_time(start_service: StartService, tiny: Any, tmp_path: Path) -> None:
    """By itself circus looks every ten seconds; three times in a row it would not look within four by chance."""
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")})
    service.wait()
    for deaths in range(1, 4):
        (worker,) = started(service)[-1:]
        before = children(service)
        os.kill(worker, signal.SIGKILL)
        until(lambda before=before: bool(children(service) - before), timeout_s=4)  # type: ignore[misc]
        until(lambda deaths=deaths: len(started(service)) == deaths + 1, timeout_s=60)  # type: ignore[misc]
        service.wait(timeout_s=60)
    assert httpx.post(f"{service.url}/v1/predict", content=PNG).status_code == 200
    assert service.terminate() == 0
    assert "Traceback" not in service.log.read_text()


def test_at_the_end_no_connection_is_made_that_nobody_answers(
    start_service: StartService, tiny: Any, tmp_path: Path
) -> None:
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")})
    service.wait()
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))

    service.process.send_signal(signal.SIGTERM)
    answers: list[bytes | None] = []
    with contextlib.suppress(ConnectionRefusedError):
        while True:
            with socket.create_connection(address, timeout=20) as connection:
                try:
                    connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    answers.append(connection.recv(12))
                except ConnectionError:
                    answers.append(None)

    # The kernel resets what nobody has accepted when the last socket closes: the last connection alone can be that.
    *before, last = answers
    assert before
    assert set(before) == {b"HTTP/1.1 200"}
    assert last in (b"HTTP/1.1 200", None)
    assert service.process.wait(20) == 0


def test_the_end_is_not_taken_for_a_death(start_service: StartService, tiny: Any, tmp_path: Path) -> None:
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")}, STRIDE_WORKERS="2")
    service.wait()
    until(lambda: len(started(service)) == 2, timeout_s=60)
    assert service.terminate() == 0
    assert len(started(service)) == 2
    assert "Traceback" not in service.log.read_text()


def test_workers_that_start_without_a_store_answer_nothing_before_they_have_the_model(
    start_service: StartService, mlflow_server: Any, tiny: Any, tmp_path: Path
) -> None:
    version = mlflow_server.publish(tiny(1).bundle(tmp_path / "b", name="first"), name="first")
    mlflow_server.promote("first", version)
    options = {"MLFLOW_TRACKING_URI": mlflow_server.url, "STRIDE_MODEL": "first", "STRIDE_WORKERS": "2"}
    service = start_service(**options)
    service.wait("/livez", timeout_s=60)
    # Each on a connection of its own: whichever worker takes it.
    statuses: list[int] = []
    ends = time.monotonic() + 60
    while len(started(service)) < 2 or len(statuses) < 50:
        assert time.monotonic() < ends
        statuses.append(httpx.post(f"{service.url}/v1/predict", content=PNG).status_code)
    assert set(statuses) == {200}
