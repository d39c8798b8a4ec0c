"""One server's turn, with small real servers: a good one, a wrong one, one that ends, one that never starts."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.serving import plan, turn, wire
from benchmarks.serving.family import Unfit
from benchmarks.serving.servers import Place, Server
from benchmarks.serving.turn import Bench

# Answers each body with two probabilities made of its first byte.
CODE = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

asked = 0

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        self.reply(b"ready")

    def do_POST(self):
        global asked
        asked += 1
        if asked > int(sys.argv[2]):
            os._exit(1)
        first = self.rfile.read(int(self.headers["Content-Length"]))[0] / 255
        self.reply(json.dumps([first, 1 - first + float(sys.argv[3])]).encode())

    def reply(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

class Server(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True

Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
BODIES = [bytes([number]) for number in range(0, 250, 10)]
EXPECTED = np.array([[body[0] / 255, 1 - body[0] / 255] for body in BODIES])


def server(*, code: str = CODE, answers: int = 10**9, wrong: float = 0.0) -> Server:
    def command(place: Place) -> list[str]:
        return [str(place.interpreter), "-c", code, str(place.port), str(answers), str(wrong)]

    return Server(
        name="tiny",
        title="Tiny",
        lock=None,
        packages=(),
        setup="",
        source="",
        command=command,
        environment=lambda _: {},
        ready="/",
        request=lambda body: wire.post("/", body, "text/plain"),
        read=json.loads,
    )


@pytest.fixture
def take(tmp_path: Path) -> Callable[[Server], dict[str, Any]]:
    cores = sorted(os.sched_getaffinity(0))
    short = replace(plan.plan(servers=1, quick=True), closed_s=0.3, poisson_s=0.3, burst_s=0.75, overload_s=0.3)
    bench = Bench(plan=short, server_core=cores[-1], client_core=cores[0], pngs=BODIES, work=tmp_path, registry="")

    def run(measured: Server) -> dict[str, Any]:
        port, *more = turn.free_ports(3)
        place = Place(
            interpreter=Path(sys.executable),
            port=port,
            more_ports=(more[0], more[1]),
            scratch=tmp_path,
            model=tmp_path / "model.onnx",
            labels=("a", "b"),
        )
        return turn.take(bench, measured, place, EXPECTED)

    return run


def alive() -> set[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return {child for child in children if child.status() != psutil.STATUS_ZOMBIE}


def test_a_turn_measures_everything_and_leaves_no_process(take: Callable[[Server], dict[str, Any]]) -> None:
    before = alive()
    found = take(server())
    assert found["difference"] < 1e-9
    assert list(found["closed"]) == ["1", "16", "64"]
    for each in found["closed"].values():
        assert each["rate"] > 0
        assert each["cpu_ms"] > 0
        assert each["failed"] == 0
        assert 0 < each["client"] < 1
    assert found["peak"] == max(each["rate"] for each in found["closed"].values())
    assert found["poisson"]["answers"] > 0
    assert found["burst"]["answers"] == plan.BURST
    assert found["overload"]["rate"] == 2 * found["peak"]
    assert found["memory"] > 5e6
    assert json.loads(json.dumps(found)) == found
    assert alive() <= before


def test_a_server_that_answers_otherwise_is_not_measured(take: Callable[[Server], dict[str, Any]]) -> None:
    before = alive()
    with pytest.raises(Unfit, match=r"Tiny differs from bare onnxruntime by 0\.0001; 1e-05 is allowed"):
        take(server(wrong=1e-4))
    assert alive() <= before


def test_a_server_that_ends_under_load_is_told_and_what_is_left_of_it_is_ended(
    take: Callable[[Server], dict[str, Any]],
) -> None:
    before = alive()
    with pytest.raises(Unfit, match="Tiny ended under load"):
        take(server(answers=len(BODIES) + 100))
    assert alive() <= before


def test_a_server_that_never_gets_ready_is_told_with_its_log(
    take: Callable[[Server], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "_READY_S", 1.0)
    before = alive()
    with pytest.raises(Unfit, match=r"Tiny was not ready in 1 s; its log ends:\n +loading"):
        take(server(code="import time; print('loading', flush=True); time.sleep(60)"))
    assert alive() <= before


def test_the_requests_of_the_peers_hold_the_image() -> None:
    from benchmarks.serving.servers import BY_NAME

    png = b"\x89PNG the image"
    for name, known in BY_NAME.items():
        _, _, body = known.request(png).partition(b"\r\n\r\n")
        assert png in body or base64.b64encode(png) in body, name


def test_stride_s_answer_is_read_in_the_order_of_the_classes() -> None:
    from benchmarks.serving.servers import BY_NAME

    top = [{"index": 2, "probability": 0.7}, {"index": 0, "probability": 0.2}, {"index": 1, "probability": 0.1}]
    assert BY_NAME["stride"].read(json.dumps({"predictions": [{"top": top}]}).encode()) == [0.2, 0.1, 0.7]
