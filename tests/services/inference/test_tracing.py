"""services.inference.tracing: which trace contexts are followed, and what becomes of spans nobody takes."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.images import encode_png
from services.inference import tracing
from services.inference.tracing import Ended, Tracer, parent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01"
PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))

MALFORMED = [
    "",
    f"00-{TRACE}-{SPAN}",
    f"00-{TRACE}-{SPAN}-1",
    f"00-{TRACE}-{SPAN}-01-more",  # version 00 has no more
    f"00-{TRACE}-{SPAN}-01-",
    f"ff-{TRACE}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE.upper()}-{SPAN}-01",
    f"00-{TRACE[:-1]}g-{SPAN}-01",
    f"00-{TRACE}-{SPAN}-0x",
    f"0-{TRACE}-{SPAN}-01",
    f"cc-{TRACE}-{SPAN}-01.what-the-future-will-not-be-like",
    f"00_{TRACE}_{SPAN}_01",
    f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",
]


@pytest.mark.parametrize("value", MALFORMED)
def test_a_malformed_traceparent_is_ignored(value: str) -> None:
    assert parent([(b"traceparent", value.encode())]) is None


@pytest.mark.parametrize("value", [VALID, f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-the-future-brings"])
def test_a_valid_traceparent_is_followed_also_of_a_later_version(value: str) -> None:
    assert parent([(b"host", b"x"), (b"traceparent", value.encode())]) == (TRACE.encode(), SPAN.encode(), True)


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True)])
def test_only_the_first_flag_says_that_a_trace_is_sampled(flags: str, sampled: bool) -> None:
    found = parent([(b"traceparent", f"00-{TRACE}-{SPAN}-{flags}".encode())])
    assert found is not None
    assert found[2] is sampled


def test_two_contexts_are_none() -> None:
    assert parent([(b"traceparent", VALID.encode())] * 2) is None


def test_without_a_collector_the_trace_is_answered_and_a_malformed_or_missing_one_is_not(http: httpx.Client) -> None:
    answered = http.post("/v1/predict", content=PNG, headers={"traceparent": VALID}).headers["traceresponse"]
    assert re.fullmatch(f"00-{TRACE}-[0-9a-f]{{16}}-00", answered)  # nothing was recorded
    assert SPAN not in answered
    assert "traceresponse" in http.get("/nothing", headers={"traceparent": VALID}).headers
    assert "traceresponse" not in http.post("/v1/predict", content=PNG).headers
    for value in MALFORMED[1:]:
        response = http.post("/v1/predict", content=PNG, headers={"traceparent": value})
        assert (response.status_code, "traceresponse" in response.headers) == (200, False), value


def test_a_pipelined_request_is_not_taken_into_the_trace_of_the_one_before(http: httpx.Client) -> None:
    import socket

    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(PNG)
    sent = b"".join(
        head + extra + b"\r\n" + PNG
        for extra in (b"traceparent: " + VALID.encode() + b"\r\n", b"", b"Connection: close\r\n")
    )
    with socket.create_connection((http.base_url.host, int(http.base_url.port or 0)), timeout=5) as client:
        client.sendall(sent)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    answers = received.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [b"traceresponse" in answer for answer in answers] == [True, False, False]


def begun(tracer: Tracer, value: str | None = None) -> tracing.Trace:
    return tracer.begin([(b"traceparent", value.encode())] if value else [])


def collecting() -> tuple[list[Ended], threading.Event, Callable[[list[Ended]], None]]:
    got: list[Ended] = []
    arrived = threading.Event()

    def export(ended: list[Ended]) -> None:
        got.extend(ended)
        arrived.set()

    return got, arrived, export


def test_a_caller_decides_and_else_the_ratio_does() -> None:
    _, _, export = collecting()
    never = Tracer(export, ratio=0.0)
    assert begun(never, VALID).sampled
    assert not begun(never).sampled
    assert begun(never, VALID).trace_id == TRACE.encode()
    alone = Tracer(export, ratio=0.0, follow=False)
    assert not begun(alone, VALID).sampled
    assert begun(alone, VALID).trace_id == TRACE.encode()
    half = Tracer(export, ratio=0.5)
    assert 350 < sum(begun(half).sampled for _ in range(1000)) < 650
    ids = {begun(half).trace_id for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(rb"[0-9a-f]{32}", one) for one in ids)
    for tracer in (never, alone, half):
        tracer.close()


def test_only_sampled_requests_are_handed_over_and_closing_sends_what_is_left() -> None:
    got, _, export = collecting()
    tracer = Tracer(export)
    for value in (VALID, VALID[:-1] + "0", None):
        trace = begun(tracer, value)
        tracer.end(trace, "POST", "/v1/predict", 1.0)
    tracer.close()
    assert [ended.trace.parent_id for ended in got] == [SPAN.encode(), b""]


def test_an_exporter_that_hangs_or_fails_costs_its_spans_alone(capsys: pytest.CaptureFixture[str]) -> None:
    let_go, dropped = threading.Event(), [0]
    failing = True

    def export(ended: list[Ended]) -> None:
        let_go.wait(10)
        if failing:
            raise OSError("nobody listens")

    def count(requests: int) -> None:
        dropped[0] += requests

    tracer = Tracer(export, dropped=count)
    for _ in range(5000):
        tracer.end(begun(tracer), "POST", "/v1/predict", 1.0)
    assert len(tracer._outbox) <= 2048
    assert 5000 - 2048 - 256 <= dropped[0] <= 5000 - 2048
    let_go.set()
    tracer.close(10)
    assert dropped[0] == 5000


def test_logs_of_a_request_hold_its_ids(make_image: Callable[[int], NDArray[np.uint8]], tiny: Any) -> None:
    """The line of a request that fails by our own fault, formatted as the service does."""
    import contextvars
    import json
    import logging

    from services.inference import logs

    def line() -> dict[str, str]:
        found: dict[str, str] = json.loads(
            logs._LOG.line.format(logging.LogRecord("x", logging.INFO, "", 0, "event", (), None))
        )
        return found

    def inside() -> dict[str, str]:
        tracing.join(tracing.joined([(b"traceparent", VALID.encode())]))
        logs.request_id.set("abc")
        return line()

    found = contextvars.copy_context().run(inside)
    assert (found["request_id"], found["trace_id"]) == ("abc", TRACE)
    assert line().keys() == {"time", "level", "event"}
