"""services.inference.refusals over real sockets: a service that is held up finds more than it may begin in one round.

SIGSTOP holds it up: what comes meanwhile is all there when it goes on, so which requests are refused is no matter of
how fast this machine is.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client import CollectorRegistry

from contracts.images import encode_png
from services.inference.backlog import LEAST, MOST, ROUND, WAIT_S, Backlog
from services.inference.metrics import Metrics
from services.inference.piece import read
from services.inference.refusals import Refusals

PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(PNG), PNG)
CROWD = MOST + ROUND + 100


@pytest.fixture
def service(plain: Any) -> Any:
    return plain


class Client:
    """One kept connection; what is sent goes out at once."""

    def __init__(self, service: Any) -> None:
        self._socket = socket.create_connection(("127.0.0.1", service.port), timeout=20)
        self._rest = b""

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: its status, fields and body."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:])
        length = int(fields.get("content-length", 0))
        while len(self._rest) < length:
            self._more()
        body, self._rest = self._rest[:length], self._rest[length:]
        return int(lines[0].split()[1]), fields, body

    def ended(self) -> bool:
        """Whether the server ends the connection, with nothing more in it."""
        return self._rest == b"" and self._socket.recv(1) == b""

    def close(self) -> None:
        self._socket.close()

    def _more(self) -> None:
        more = self._socket.recv(65536)
        assert more, self._rest
        self._rest += more


@pytest.fixture
def clients(service: Any) -> Iterator[Callable[[int], list[Client]]]:
    with contextlib.ExitStack() as stack:

        def connect(count: int) -> list[Client]:
            found = [stack.enter_context(contextlib.closing(Client(service))) for _ in range(count + 1)]
            found[-1].send(WHOLE)
            assert found[-1].answer()[0] == 200  # connections are taken in their order, so all of them are
            # None that has been answered just now: until the server waits again it would be the first that is ready.
            return found[:-1]

        yield connect


@contextlib.contextmanager
def held_up(service: Any) -> Iterator[None]:
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    (worker,) = (line["pid"] for line in lines if line["event"] == "started")
    os.kill(worker, signal.SIGSTOP)
    try:
        while psutil.Process(worker).status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        yield
    finally:
        os.kill(worker, signal.SIGCONT)


def counts(service: Any) -> Counter[str]:
    text = httpx.get(f"{service.url}/metrics").text
    found = re.findall(r"^(stride_(?:shed|errors|http_requests)_total\{.*\}) (\S+)$", text, re.MULTILINE)
    return Counter({series: int(float(value)) for series, value in found})


def test_what_comes_at_once_is_begun_as_far_as_it_may_wait_and_refused_beyond(service: Any, clients: Any) -> None:
    crowd, before = clients(CROWD), counts(service)
    with held_up(service):
        for number, client in enumerate(crowd):
            client.send(WHOLE.replace(b"Host: x", b"Host: x\r\nX-Request-ID: r%d" % number))
    answers = [client.answer() for client in crowd]
    statuses = Counter(status for status, _, _ in answers)
    assert statuses.keys() == {200, 429}
    assert LEAST <= statuses[200] <= MOST + ROUND
    assert [fields["x-request-id"] for _, fields, _ in answers] == [f"r{number}" for number in range(CROWD)]
    for status, fields, body in answers:
        if status == 429:
            assert (fields["retry-after"], fields["content-type"]) == ("1", "application/problem+json")
            assert (json.loads(body)["code"], json.loads(body)["status"]) == ("overloaded", 429)
    new = counts(service) - before
    assert new['stride_shed_total{reason="not_begun"}'] == statuses[429]
    assert new['stride_errors_total{code="overloaded"}'] == statuses[429]
    assert new['stride_http_requests_total{route="predict",status="4xx"}'] == statuses[429]
    for client in crowd:  # and each of the connections goes on
        client.send(WHOLE)
        assert client.answer()[0] == 200


def refused(service: Any, clients: Any, *pieces: bytes) -> tuple[Client, tuple[int, dict[str, str], bytes]]:
    """The answer to a request that comes behind a crowd, the rest of its pieces after that."""
    *crowd, last = clients(CROWD + 1)
    with held_up(service):
        for client in crowd:
            client.send(WHOLE)
        last.send(pieces[0])
    answer = last.answer()
    for piece in pieces[1:]:
        last.send(piece)
    for client in crowd:
        client.answer()
    return last, answer


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD + b"Content-Length: %d\r\n\r\n" % len(PNG), PNG),
        (HEAD + b"Content-Length: %d\r\n\r\n" % len(PNG) + PNG[:10], PNG[10:30], PNG[30:]),
        (HEAD + CHUNKED, b"5\r\nabcde\r\n", b"0\r\n\r\n"),
        (HEAD + CHUNKED + b"5\r\nabcde\r\n0\r\n\r\n",),
        (HEAD + b"Content-Length: 0\r\n\r\n",),
        (HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 60_000, b"x" * 40_000),
        (WHOLE.replace(b"HTTP/1.1", b"HTTP/1.1", 1).replace(b"/v1/predict", b"/v1/models/shapes/predict?top_k=1"),),
    ],
    ids=["body later", "in three pieces", "chunks later", "chunks", "no body", "large body", "by name"],
)
def test_the_body_of_a_refused_request_is_passed_over_however_it_comes(
    service: Any, clients: Any, pieces: tuple[bytes, ...]
) -> None:
    client, (status, _, body) = refused(service, clients, *pieces)
    assert (status, json.loads(body)["code"]) == (429, "overloaded")
    client.send(WHOLE)
    assert client.answer()[0] == 200


@pytest.mark.parametrize("first", [WHOLE, HEAD + CHUNKED + b"5\r\nabcde\r\n0\r\n\r\n"], ids=["length", "chunks"])
def test_what_is_sent_behind_a_refused_request_is_answered_in_its_turn(
    service: Any, clients: Any, first: bytes
) -> None:
    def named(request: bytes, name: bytes) -> bytes:
        return request.replace(b"Host: x", b"Host: x\r\nX-Request-ID: " + name)

    show = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
    pipelined = named(first, b"a") + named(show, b"b") + named(WHOLE, b"c")
    client, (status, fields, _) = refused(service, clients, pipelined)
    assert (status, fields["x-request-id"]) == (429, "a")
    status, fields, _ = client.answer()
    assert (status, fields["x-request-id"]) == (200, "b")
    status, fields, _ = client.answer()
    assert (status in (200, 429), fields["x-request-id"]) == (True, "c")
    client.send(WHOLE)
    assert client.answer()[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close"),
        WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(PNG),
    ],
    ids=["close", "HTTP/1.0", "100-continue"],
)
def test_a_refusal_ends_the_connection_where_it_must(service: Any, clients: Any, request_: bytes) -> None:
    client, (status, fields, _) = refused(service, clients, request_)
    assert (status, fields["connection"]) == (429, "close")
    assert client.ended()


def test_who_is_still_sending_when_refused_may_go_on_before_the_connection_ends(service: Any, clients: Any) -> None:
    """Ended at once, with a body on its way, the connection would be reset, and many a client never see its answer."""
    head = HEAD + b"Connection: close\r\nContent-Length: 300000\r\n\r\n"
    client, (status, fields, _) = refused(service, clients, head + b"x" * 100_000)
    assert (status, fields["connection"]) == (429, "close")
    for _ in range(4):
        client.send(b"x" * 50_000)
        time.sleep(0.05)
    assert client.ended()


def test_a_refusal_below_v2_has_its_form_and_a_trace_is_answered(service: Any, clients: Any) -> None:
    trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    sent = WHOLE.replace(b"/v1/predict", b"/v2/models/shapes/infer")
    before = counts(service)
    _, (status, fields, body) = refused(service, clients, sent.replace(b"Host: x", b"Host: x\r\ntraceparent: " + trace))
    assert (status, fields["content-type"], json.loads(body).keys()) == (429, "application/json", {"error"})
    assert fields["traceresponse"].startswith("00-4bf92f3577b34da6a3ce929d0e0e4736-")
    assert (counts(service) - before)['stride_http_requests_total{route="v2/infer",status="4xx"}'] == 1


def test_who_asks_how_it_is_is_answered(service: Any, clients: Any) -> None:
    for path in (b"/livez", b"/readyz", b"/metrics", b"/v1/models"):
        _, (status, _, _) = refused(service, clients, b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        assert status == 200, path


def of_piece(data: bytes) -> bytes | None:
    async def main() -> bytes | None:
        if (piece := read(data)) is None:
            return None
        return Refusals(Metrics(CollectorRegistry())).of_piece(piece, [(b"date", b"today")])

    return asyncio.run(main())


def test_one_whole_request_is_refused_from_its_bytes() -> None:
    answer = of_piece(WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: Keep-Alive\r\nx-REQUEST-id: mine"))
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(line.split(b": ") for line in head.split(b"\r\n")[1:])
    assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
    assert (fields[b"date"], fields[b"x-request-id"], int(fields[b"content-length"])) == (b"today", b"mine", len(body))
    made_up = of_piece(WHOLE.replace(b"Host: x", b"Host: x\r\nX-Request-ID: <script>"))
    assert re.search(rb"\r\nx-request-id: [0-9a-f]{16}\r\n", made_up or b"")


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:-1],
        WHOLE + b"G",
        WHOLE + WHOLE,
        WHOLE.replace(b"POST", b"PUT"),
        WHOLE.replace(b"/v1/predict", b"/v1/models"),
        WHOLE.replace(b"/v1/predict", b"http://x/v1/predict"),
        WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nContent-Length: 3"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nExpect: 100-continue"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nConnection: close"),
        WHOLE.replace(b"Host: x", b"Host: x\r\nUpgrade: h2c"),
        WHOLE.replace(b"Host: x", b"Host: x\nTransfer-Encoding: chunked"),
        WHOLE.replace(b"Host: x", b"Host: x\r\n folded: y"),
        WHOLE.replace(b"Host: x", b"Host : x"),
        WHOLE.replace(b"Host: x", b"Host: x\0"),
        WHOLE.replace(b"Host: x", b"Host: x\x01"),
        WHOLE.replace(b"Host: x", b"Host: x" + b"\r\nX-Field: a" * 100),
        WHOLE.replace(b"Content-Length: ", b"Content-Length: +"),
        WHOLE.replace(b"Content-Length: ", b"Content-Length : "),
        HEAD + b"\r\n",
        b"\r\n" + WHOLE,
    ],
)
def test_what_leaves_a_doubt_is_left_to_the_parser(data: bytes) -> None:
    assert of_piece(data) is None


class Rounds:
    """A loop whose rounds take as long as a test says, and the requests that were begun in each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backlog = Backlog()
        self.begun: list[int] = []
        self._now = 1.0
        monkeypatch.setattr("services.inference.backlog.time.perf_counter", lambda: self._now)

    async def go(self, requests: int, rounds: int, seconds: float) -> None:
        """In each round so many requests come, and it takes so long."""
        self.begun = []
        for _ in range(rounds):
            self.begun.append(0)
            for _ in range(requests):
                if not self.backlog.full:
                    self.backlog.take(self._begin)
            await asyncio.sleep(0)
            self._now += seconds

    def _begin(self) -> None:
        self.begun[-1] += 1


def test_a_round_begins_so_many_and_the_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        rounds = Rounds(monkeypatch)
        await rounds.go(ROUND // 2, 3, 0.001)
        assert rounds.begun == [ROUND // 2] * 3
        await asyncio.sleep(0)
        order: list[int] = []
        for number in range(2 * ROUND):
            rounds.backlog.take(lambda number=number: order.append(number))  # type: ignore[misc] # to keep its value
        assert len(order) == ROUND
        await asyncio.sleep(0)
        assert order == list(range(2 * ROUND))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("request_s", "most"), [(0.0003, int(WAIT_S / 0.0003)), (0.000001, MOST), (0.01, LEAST)], ids=["", "quick", "slow"]
)
def test_as_many_may_wait_as_can_be_begun_in_good_time(
    monkeypatch: pytest.MonkeyPatch, request_s: float, most: int
) -> None:
    async def main() -> None:
        rounds = Rounds(monkeypatch)
        await rounds.go(3 * ROUND, 50, ROUND * request_s)
        assert set(rounds.begun[1:]) == {ROUND}
        assert abs(rounds.backlog.most - most) <= 2
        assert len(rounds.backlog._waiting) == rounds.backlog.most - ROUND  # once the round has begun its part

    asyncio.run(main())


def test_a_rush_is_what_was_begun_of_late(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        rounds = Rounds(monkeypatch)
        assert rounds.backlog.rush == 0
        await rounds.go(7, 1, 0.001)
        assert rounds.backlog.rush == 7
        rounds._now += 2 * WAIT_S
        assert rounds.backlog.rush == 0

    asyncio.run(main())


def test_a_request_begins_in_no_other_ones_context(monkeypatch: pytest.MonkeyPatch) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="none")
    seen: list[str] = []

    async def main() -> None:
        backlog = Backlog()
        var.set("another's")
        for _ in range(ROUND + 1):
            backlog.take(lambda: seen.append(var.get()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert seen[-1] == "none"
