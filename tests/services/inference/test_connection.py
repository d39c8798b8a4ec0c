"""services.inference.connection over real sockets: what comes before a request is whole, and who never reads."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from contracts.images import encode_png

PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n"


def connect(url: str) -> socket.socket:
    address = httpx.URL(url)
    return socket.create_connection((address.host, int(address.port or 0)), timeout=20)


def until_closed(client: socket.socket) -> bytes:
    """All that comes before the server ends the connection."""
    received = b""
    try:
        while more := client.recv(65536):
            received += more
    except ConnectionResetError:  # what was sent after the answer had not been read
        pass
    return received


def flood(client: socket.socket, piece: bytes, times: int) -> None:
    try:
        for _ in range(times):
            client.sendall(piece)
    except (ConnectionResetError, BrokenPipeError):
        pass


@pytest.fixture(scope="module")
def impatient(start_shared: Callable[..., Any], tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service that gives heads and bodies half a second, and the next request six."""
    stored = {"shapes": tiny(1).bundle(tmp_path_factory.mktemp("impatient") / "b")}
    service = start_shared(stored=stored, STRIDE_BODY_SECONDS="0.5", STRIDE_KEEP_ALIVE_SECONDS="6")
    service.wait()
    return service


def test_slow_senders_are_ended_wherever_they_stop(impatient: Any) -> None:
    answered = HEAD.replace(b"predict", b"nothing") + b"Content-Length: 1000\r\n\r\n"
    for sent, status in (
        (b"", b""),
        (b"POST /v1/pre", b""),
        (HEAD + b"X: ", b""),
        (HEAD + b"Content-Length: 70\r\n\r\n" + PNG[:10], b"HTTP/1.1 408 "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", b"HTTP/1.1 408 "),
        (answered + b"x" * 10, b"HTTP/1.1 404 "),
    ):
        with connect(impatient.url) as client:
            client.sendall(sent)
            began = time.monotonic()
            assert until_closed(client)[:13] == status, sent
            assert time.monotonic() - began < 5, sent  # the rest of what is answered has no longer than a head, either
    assert httpx.post(f"{impatient.url}/v1/predict", content=PNG).status_code == 200


def test_an_idle_connection_is_kept_as_long_as_is_said(
    start_service: Callable[..., Any], tiny: Any, tmp_path: Path
) -> None:
    """And by default for longer than the 5 s of uvicorn: a balancer keeps its own for 60."""
    stored = {"shapes": tiny(1).bundle(tmp_path / "b")}
    kept, ended = (start_service(stored=stored, **more) for more in ({}, {"STRIDE_KEEP_ALIVE_SECONDS": "0.5"}))
    for service in (kept, ended):
        service.wait()
    with (
        closing(http.client.HTTPConnection("127.0.0.1", kept.port, timeout=20)) as client,
        closing(http.client.HTTPConnection("127.0.0.1", ended.port, timeout=20)) as brief,
    ):
        for each in (client, brief):
            each.request("POST", "/v1/predict", PNG)
            assert json.load(each.getresponse())["predictions"]
        began = time.monotonic()
        assert brief.sock.recv(1) == b""
        assert time.monotonic() - began < 5
        time.sleep(max(0.0, 6 - (time.monotonic() - began)))
        client.request("POST", "/v1/predict", PNG)
        assert json.load(client.getresponse())["predictions"]


@pytest.mark.parametrize("before", [b"POST /v1/pre", HEAD + b"X: ", HEAD + b"Content-Length: 70\r\n\r\n" + PNG[:10]])
def test_a_trickle_does_not_stretch_the_time(impatient: Any, before: bytes) -> None:
    with connect(impatient.url) as client:
        client.sendall(before)
        client.settimeout(0.1)
        ends = time.monotonic() + 30
        received = b"nothing yet"
        while received == b"nothing yet":
            assert time.monotonic() < ends
            try:
                client.sendall(b"a")
                received = client.recv(4096)
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break


@pytest.mark.parametrize(
    ("before", "piece"),
    [
        (HEAD, b"X-Field: " + b"a" * 990 + b"\r\n"),
        (HEAD + b"X: ", b"a" * 1000),
        (b"POST /v1/predict?", b"a" * 1000),
        (b"", b"\r\n" * 500),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n", b"X-Trailer: " + b"a" * 990 + b"\r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a" * 1000),
    ],
    ids=["fields", "one field", "query", "empty lines", "trailers", "chunk extension"],
)
def test_an_endless_head_or_trailer_is_refused_and_not_kept(served: Any, before: bytes, piece: bytes) -> None:
    service = psutil.Process(served.process.pid)
    memory = sum(one.memory_info().rss for one in (service, *service.children(recursive=True)))
    with connect(served.url) as client:
        client.sendall(before)
        flood(client, piece * 100, 500)  # 50 MB
        received = until_closed(client)
    assert received[:13] in (b"", b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")
    after = sum(one.memory_info().rss for one in (service, *service.children(recursive=True)))
    assert after - memory < 20e6
    assert httpx.post(f"{served.url}/v1/predict", content=PNG).status_code == 200


def test_too_many_fields_are_told_as_a_problem(served: Any) -> None:
    with connect(served.url) as client:
        client.sendall(HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(200)) + b"\r\n")
        head, _, body = until_closed(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["code"] == "head_too_large"


def test_what_is_no_http_is_told_as_a_problem(served: Any) -> None:
    with connect(served.url) as client:
        client.sendall(b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n")
        head, _, body = until_closed(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body).keys() == {"type", "title", "status", "detail", "code"}


def test_what_is_refused_below_the_application_is_counted_as_an_error(impatient: Any) -> None:
    def counted() -> list[float]:
        page = httpx.get(f"{impatient.url}/metrics").text
        series = [f'errors_total{{code="{code}"}}' for code in ("malformed_request", "head_too_large")]
        series.append('http_requests_total{route="other",status="4xx"}')
        found = dict(line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
        return [float(found.get(f"stride_{one}", 0)) for one in series]

    before = counted()
    for sent in (b"no HTTP\r\n\r\n", HEAD + b"".join(b"X-%d: a\r\n" % number for number in range(200)) + b"\r\n"):
        with connect(impatient.url) as client:
            client.sendall(sent)
            until_closed(client)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1, 2]


def test_a_kept_connection_is_closed_when_it_rests_and_not_while_it_is_used(impatient: Any) -> None:
    with connect(impatient.url) as client:
        began = time.monotonic()
        while time.monotonic() < began + 3:  # far longer than a head may take
            client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(PNG) + PNG)
            received = b""
            while not received.endswith(b"]}]}"):  # of the JSON
                received += (more := client.recv(65536))
                assert more, received
            assert received.startswith(b"HTTP/1.1 200 ")
            time.sleep(0.2)
        rested = time.monotonic()
        assert until_closed(client) == b""
        assert 4 < time.monotonic() - rested < 15


def test_a_client_that_never_reads_its_answers_does_not_hold_up_the_end(
    start_service: Callable[..., Any], tiny: Any, tmp_path: Path
) -> None:
    limits = {"STRIDE_GRACE_SECONDS": "2", "STRIDE_DEADLINE_SECONDS": "1"}
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")}, **limits)
    service.wait()
    with connect(service.url) as client:
        client.settimeout(1)
        request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        try:
            while True:
                client.sendall(request * 100)
        except TimeoutError:  # the buffers of both sides are full: the service waits for the client to read
            pass
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(timeout=10) == 0


@pytest.mark.parametrize("sent", [300_000, 3_000_000])
def test_who_is_still_sending_what_was_refused_reads_the_answer_and_no_reset(plain: Any, sent: int) -> None:
    with connect(plain.url) as client:
        client.sendall(HEAD + b"Content-Length: 100000000\r\n\r\n")
        client.sendall(b"x" * sent)
        received = b""
        while more := client.recv(65536):  # a reset would raise
            received += more
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert json.loads(body)["code"] == "too_large"


def test_who_sends_on_and_on_after_a_refusal_is_ended(plain: Any) -> None:
    with connect(plain.url) as client:
        client.sendall(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        piece = b"x" * 100_000

        def send_on() -> None:
            began = time.monotonic()
            while time.monotonic() < began + 30:
                client.sendall(piece)

        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            send_on()
