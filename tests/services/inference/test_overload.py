"""Twice as many requests as can be answered: what is answered, how soon, and what the others are told."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import psutil
import pytest
from onnx import helper, numpy_helper

from contracts.images import encode_png

CLIENT = Path(__file__).with_name("overload_client.py")
PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
REQUEST = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(PNG), PNG)
DEADLINE_S = 1.0
ROUNDS = 3
SECONDS = 3.0


def heavy(tiny: Any) -> onnx.ModelProto:
    """A graph that answers as the tiny one does, after some hundred million multiplications a row."""
    model: onnx.ModelProto = tiny(1).graph()
    side, layers = 1024, 192
    arrays = {
        "in": np.full((64, side), 1e-3, dtype=np.float32),
        "turn": np.full((side, side), 1 / side, dtype=np.float32),
        "out": np.zeros((side, 3), dtype=np.float32),  # of no effect on the answer; no optimizer knows
    }
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    softmax = model.graph.node.pop()
    names = ["flat", *(f"layer{number}" for number in range(layers)), "nothing"]
    weights = ["in", *["turn"] * (layers - 1), "out"]
    for source, weight, target in zip(names, weights, names[1:], strict=False):
        model.graph.node.append(helper.make_node("MatMul", [source, weight], [target]))
    model.graph.node.append(helper.make_node("Add", ["logits", "nothing"], ["sum"]))
    softmax.input[0] = "sum"
    model.graph.node.append(softmax)
    return model


@pytest.fixture
def slow_service(start_service: Callable[..., Any], tiny: Any, tmp_path: Path) -> Any:
    """One thread for the graph, so that it is the graph that cannot do more, and not the event loop."""
    known = tiny(1).bundle(tmp_path / "b", model=heavy(tiny))
    options = {"STRIDE_DEADLINE_SECONDS": str(DEADLINE_S), "STRIDE_THREADS": "1", "STRIDE_MAX_BATCH": "8"}
    service = start_service(stored={"shapes": known}, **options)
    service.wait()
    return service


@pytest.fixture
def quick_service(start_service: Callable[..., Any], tiny: Any, tmp_path: Path) -> Any:
    """The tiny graph, which costs nothing: it is the event loop that cannot do more."""
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")}, STRIDE_THREADS="1")
    service.wait()
    return service


def load(service: Any, *arguments: object) -> dict[str, Any]:
    """What the client found, and `cpu_s`, the service's CPU seconds for each good answer."""
    command = [sys.executable, str(CLIENT), str(service.port), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        before = cpu_seconds(service)
        told, _ = client.communicate("go\n", timeout=60)
    found: dict[str, Any] = json.loads(told)
    return {**found, "cpu_s": (cpu_seconds(service) - before) / len(found["latencies"]["200"])}


def cpu_seconds(service: Any) -> float:
    """Of the service's whole family of processes so far."""
    supervisor = psutil.Process(service.process.pid)
    times = [process.cpu_times() for process in (supervisor, *supervisor.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def test_at_twice_the_capacity_the_goodput_stays_and_the_rest_is_refused_at_once(slow_service: Any) -> None:
    peaks: list[float] = []
    good: list[float] = []
    peak_cost: list[float] = []
    cost: list[float] = []
    answered: list[float] = []
    refused: list[float] = []
    told_when = 0
    # In turns: what else runs on this machine comes and goes.
    for _ in range(ROUNDS):
        closed = load(slow_service, "closed", 16, SECONDS)
        peaks.append(closed["good"] / SECONDS)
        peak_cost.append(closed["cpu_s"])
        found = load(slow_service, "open", 2 * max(peaks), SECONDS)
        good.append(found["good"] / SECONDS)
        cost.append(found["cpu_s"])
        assert found["latencies"].keys() <= {"200", "429"}
        told_when += found["told_when"]
        answered += found["latencies"]["200"]
        refused += found["latencies"].get("429", [])
    assert refused
    assert told_when == len(refused)
    assert statistics.median(refused) < 0.1
    # On a machine of its own this is 90 % of the goodput; the other programs of a shared one cannot change it.
    assert statistics.median(peak_cost) >= 0.9 * statistics.median(cost), (peaks, good, peak_cost, cost)
    assert max(good) >= 0.7 * max(peaks), (peaks, good)
    # To the deadline comes the way there and back.
    assert statistics.quantiles(answered, n=100)[98] < 2 * DEADLINE_S
    assert load(slow_service, "closed", 1, 0.5)["latencies"].keys() == {"200"}  # and then as before
    metrics = httpx.get(f"{slow_service.url}/metrics").text
    assert 'stride_errors_total{code="overloaded"}' in metrics
    assert "stride_requests_in_flight 0.0" in metrics


def test_where_the_event_loop_is_the_limit_the_goodput_stays_as_well(quick_service: Any, tmp_path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 2, size=(127, 127, 1), dtype=np.uint8) * 255
    (tmp_path / "picture.png").write_bytes(encode_png(picture))  # decoded on the loop, as it is small
    peaks: list[float] = []
    kept: list[float] = []
    refused: list[float] = []
    answered: list[float] = []
    for _ in range(ROUNDS):
        closed = load(quick_service, "closed", 32, SECONDS, tmp_path / "picture.png")
        assert closed["latencies"].keys() == {"200"}
        peaks.append(closed["good"] / SECONDS)
        found = load(quick_service, "open", 2 * max(peaks), SECONDS, tmp_path / "picture.png")
        assert found["latencies"].keys() <= {"200", "429"}
        assert found["told_when"] == len(found["latencies"].get("429", []))
        kept.append(found["good"] / closed["good"])
        answered += found["latencies"]["200"]
        refused += found["latencies"].get("429", [])
    assert refused
    # 90 % is the promise, on a machine of one's own; with nothing refused here it is 50 to 60.
    assert max(kept) >= 0.85, kept
    assert statistics.median(kept) >= 0.75, kept
    assert statistics.median(refused) < 0.1
    assert statistics.median(answered) < DEADLINE_S
    assert load(quick_service, "closed", 1, 0.5)["latencies"].keys() == {"200"}


def answer(client: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"]}]}"):  # of the JSON
        received += (more := client.recv(65536))
        assert more, received
    return received


def test_sigterm_under_load_loses_no_request_that_was_taken(slow_service: Any) -> None:
    address = ("127.0.0.1", slow_service.port)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address, timeout=20)) for _ in range(24)]
        for client in clients:  # so that each is a connection that has been taken
            client.sendall(REQUEST)
        for client in clients:
            assert answer(client).startswith(b"HTTP/1.1 200 ")
        for client in clients:
            client.sendall(REQUEST)
        slow_service.process.send_signal(signal.SIGTERM)
        for client in clients:
            assert answer(client).startswith(b"HTTP/1.1 200 ")
    assert slow_service.terminate() == 0
