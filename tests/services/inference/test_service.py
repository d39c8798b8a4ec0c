"""services.inference.service as a process: how it starts, refuses and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.images import encode_png
from services.inference import provider

StartService = Callable[..., Any]
PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))


def test_with_the_registry_away_two_workers_start_from_the_stored_bundle_and_drain_without_losing_a_request(
    start_service: StartService, tiny: Any, make_image: Callable[[int], NDArray[np.uint8]], tmp_path: Path
) -> None:
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")}, STRIDE_WORKERS="2")
    service.wait()
    wanted = tiny(1).probabilities(make_image(5)[np.newaxis])[0]
    answer = httpx.post(f"{service.url}/v1/predict", content=encode_png(make_image(5))).json()
    assert answer["predictions"][0]["index"] == wanted.argmax()
    service.wait("/v1/models")

    lost: list[str] = []
    answered = 0
    asked_to_end = threading.Event()

    def load() -> None:
        nonlocal answered
        with httpx.Client(base_url=service.url, timeout=10) as client:
            while True:
                before = not asked_to_end.is_set()
                try:
                    response = client.post("/v1/predict", content=PNG)
                except httpx.ConnectError:
                    return  # the service has ended: this request was not accepted
                except httpx.TransportError as error:
                    # A connection that waited for its turn after the end had been asked for was not accepted either.
                    if before:
                        lost.append(repr(error))
                    return
                if response.status_code != 200:
                    lost.append(response.text)
                answered += 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    while answered < 50:
        time.sleep(0.01)
    asked_to_end.set()
    started = time.monotonic()
    assert service.terminate() == 0
    assert time.monotonic() - started < 10
    for thread in threads:
        thread.join()
    assert lost == []


def test_without_a_model_the_service_lives_but_is_not_ready_and_says_why(start_service: StartService) -> None:
    service = start_service()
    service.wait("/livez")
    ready = httpx.get(f"{service.url}/readyz")
    assert (ready.status_code, "no model is loaded yet" in ready.text) == (503, True)
    response = httpx.post(f"{service.url}/v1/predict", content=PNG)
    assert (response.status_code, response.json()["code"]) == (503, "no_model")
    assert "retry-after" in response.headers
    assert service.terminate() == 0


@pytest.mark.skipif(provider.choose("auto", require_gpu=False).name == provider.CUDA, reason="there is a GPU")
def test_a_required_gpu_that_is_not_there_is_refused_with_the_reason(
    start_service: StartService, tiny: Any, tmp_path: Path
) -> None:
    stored = {"shapes": tiny(1).bundle(tmp_path / "b")}
    service = start_service(stored=stored, STRIDE_REQUIRE_GPU="1", STRIDE_DEVICE="auto")
    service.wait("/livez")
    reason = "STRIDE_REQUIRE_GPU is 1, but there is no usable GPU"
    while reason not in (ready := httpx.get(f"{service.url}/readyz")).text:
        assert ready.status_code == 503
    response = httpx.post(f"{service.url}/v1/predict", content=PNG)
    assert (response.status_code, response.json()["code"]) == (503, "device_unavailable")
    assert reason in response.json()["detail"]
    assert reason in httpx.get(f"{service.url}/v1/models").json()["refusal"]


def test_a_model_that_answers_its_golden_image_wrongly_is_never_ready(
    start_service: StartService, tiny: Any, tmp_path: Path
) -> None:
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b", wrong=0.1)})
    service.wait("/livez")
    assert "stored_version_refused" in service.log.read_text()
    assert httpx.get(f"{service.url}/readyz").status_code == 503
    assert httpx.post(f"{service.url}/v1/predict", content=PNG).status_code == 503


def test_a_slow_body_is_given_up_and_overload_is_told_with_retry_after(
    start_service: StartService, tiny: Any, tmp_path: Path
) -> None:
    stored = {"shapes": tiny(1).bundle(tmp_path / "b")}
    service = start_service(stored=stored, STRIDE_BODY_SECONDS="0.3", STRIDE_QUEUE_ROWS="2", STRIDE_MAX_PARTS="2")
    service.wait()

    def trickle() -> Any:
        yield PNG[:10]
        time.sleep(1)
        yield PNG[10:]

    response = httpx.post(f"{service.url}/v1/predict", content=trickle())
    assert (response.status_code, response.json()["code"]) == (408, "slow_body")

    refused: list[httpx.Response] = []

    def load() -> None:
        files = [("image", ("a.png", PNG))] * 2
        with httpx.Client(base_url=service.url, timeout=10) as client:
            responses = [client.post("/v1/predict", files=files) for _ in range(40)]
        refused.extend(response for response in responses if response.status_code != 200)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused
    assert {response.status_code for response in refused} == {429}
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert httpx.post(f"{service.url}/v1/predict", content=PNG).status_code == 200


def test_a_bad_variable_ends_the_start_with_one_sentence() -> None:
    command = [sys.executable, "-c", "import services.inference.service"]
    ended = subprocess.run(
        command, env={"STRIDE_WORKERS": "none", "PYTHONPATH": "."}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.strip() == "stride: STRIDE_WORKERS is 'none'; set it to a whole number from 1 to 256."


def test_serving_imports_neither_torch_nor_training() -> None:
    script = (
        "import sys, services.inference.service, services.inference.watcher\n"
        "found = [m for m in sys.modules if m.startswith(('torch', 'pipelines', 'services.training'))]\n"
        "print(found)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def started(service: Any) -> list[int]:
    """The process ids of the workers that have started, in that order."""
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return [line["pid"] for line in lines if line["event"] == "started"]


def test_a_killed_worker_of_two_is_replaced_and_requests_go_on(
    start_service: StartService, tiny: Any, tmp_path: Path
) -> None:
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")}, STRIDE_WORKERS="2")
    service.wait()
    until(lambda: len(started(service)) == 2)
    statuses: list[int] = []
    failures: list[tuple[float, str]] = []
    ended = threading.Event()

    def load(kept: bool) -> None:
        """On one connection that is kept, or on a new one a request: those also reach the new worker."""
        with httpx.Client(base_url=service.url, timeout=10) as client:
            headers = {} if kept else {"Connection": "close"}
            while not ended.is_set():
                try:
                    statuses.append(client.post("/v1/predict", content=PNG, headers=headers).status_code)
                except httpx.TransportError as error:
                    failures.append((time.monotonic(), repr(error)))

    clients = [threading.Thread(target=load, args=(kept,)) for kept in (True, True, False, False)]
    for client in clients:
        client.start()
    try:
        until(lambda: len(statuses) > 50)
        killed_at = time.monotonic()
        os.kill(started(service)[0], signal.SIGKILL)
        until(lambda: len(started(service)) == 3)
        at_once = len(statuses)
        until(lambda: len(statuses) > at_once + 500)
    finally:
        ended.set()
        for client in clients:
            client.join()
    # Only what the killed worker held is lost: at most the one request in flight of each connection, at that moment.
    assert len(failures) <= 4
    assert all(failed_at - killed_at < 2 for failed_at, _ in failures), failures
    assert set(statuses) == {200}
    assert httpx.get(f"{service.url}/readyz").status_code == 200


def until(met: Callable[[], bool], timeout_s: float = 30) -> None:
    ends = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_registry_that_stays_away_is_told_once(start_service: StartService, tiny: Any, tmp_path: Path) -> None:
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")}, STRIDE_POLL_SECONDS="0.05")
    service.wait()
    until(lambda: "registry_away" in service.log.read_text())
    length = len(service.log.read_text())
    time.sleep(2)  # some 20 polls
    assert len(service.log.read_text()) == length
