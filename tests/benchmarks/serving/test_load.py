"""The load generator over real sockets, against a server whose answers and delays the test decides."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from benchmarks.serving import arrivals, load, wire
from benchmarks.serving.load import Load, Nobody
from benchmarks.serving.measured import LOST

REQUESTS = [wire.post("/", f"question {number}".encode(), "text/plain") for number in range(5)]
Reply = Callable[[int, bytes], bytes | None]
"""(number of the request, its body) -> the answer; None closes the connection without one."""


def answer(body: bytes, *, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def after(seconds: float, found: bytes) -> bytes:
    time.sleep(seconds)
    return found


@dataclass
class Tiny:
    """Answers one request of a connection after the other, each connection in a thread of its own."""

    reply: Reply
    asked: int = 0
    connections: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def _talk(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), client.makefile("rb") as lines:
            while lines.readline():
                size = 0
                while (line := lines.readline().strip().lower()) != b"":
                    if line.startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                body = lines.read(size)
                with self.lock:
                    self.asked += 1
                    number = self.asked
                if (found := self.reply(number, body)) is None:
                    return
                client.sendall(found)


@pytest.fixture
def tiny() -> Iterator[Callable[[Reply], tuple[Tiny, int]]]:
    with contextlib.ExitStack() as stack:

        def start(reply: Reply) -> tuple[Tiny, int]:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
            server = Tiny(reply)
            threading.Thread(target=server.serve, args=(listening,), daemon=True).start()
            stack.callback(listening.shutdown, socket.SHUT_RDWR)
            return server, int(listening.getsockname()[1])

        yield start


Start = Callable[[Reply], tuple[Tiny, int]]


def test_a_closed_loop_asks_again_as_soon_as_it_is_answered(tiny: Start) -> None:
    server, port = tiny(lambda _, body: after(0.01, answer(body)))
    measured = Load(port, REQUESTS).closed(3, 0.3)
    assert server.connections == 3
    assert measured.statuses() == {200: server.asked}
    assert 45 <= server.asked <= 93  # 3 connections, 30 rounds of 10 ms at most, and some time for the machine
    assert measured.good() <= server.asked
    found = measured.latencies()["p50"]
    assert found is not None
    assert found >= 10


def test_each_answer_goes_to_its_own_question(tiny: Start) -> None:
    _, port = tiny(lambda _, body: answer(body))
    measured = Load(port, REQUESTS, keep=True, tag=re.compile(rb"question (\d)")).closed(4, 0.1)
    assert len(measured.answers) > len(REQUESTS)
    for each in measured.answers:
        assert each.data is not None
        assert wire.content(each.data) == f"question {each.number}".encode()
        assert each.tag == str(each.number).encode()


def test_an_open_loop_counts_from_when_a_request_was_due(tiny: Start) -> None:
    """A server that stands still for half a second makes every request late that was due meanwhile: 25 of 50."""
    begun = time.perf_counter()

    def stop_once(_: int, body: bytes) -> bytes:
        now = time.perf_counter() - begun
        if 0.2 < now < 0.7:
            time.sleep(0.7 - now)
        return answer(body)

    _, port = tiny(stop_once)
    begun = time.perf_counter() + load._SETTLE_S
    measured = Load(port, REQUESTS).open([number * 0.02 for number in range(50)], 1.0, connections=1)
    late = [each.done - each.due for each in measured.answers]
    assert measured.statuses() == {200: 50}
    assert max(late) >= 0.4
    # A closed loop would have asked once in that time, and told of one slow answer.
    assert sum(each > 0.1 for each in late) >= 15


def test_what_a_closed_loop_used_of_its_core_is_told_without_its_looks_for_answers(tiny: Start) -> None:
    _, port = tiny(lambda _, body: after(0.05, answer(body)))
    measured = Load(port, REQUESTS).closed(1, 0.5)
    assert measured.statuses()[200] >= 5
    assert 0 < measured.client_share < 0.3


def test_an_open_loop_keeps_its_schedule(tiny: Start) -> None:
    _, port = tiny(lambda _, body: answer(body))
    schedule = arrivals.poisson(400, 0.5, seed=1)
    measured = Load(port, REQUESTS).open(schedule, 0.5, connections=64, warm=8)
    assert len(measured.answers) == len(schedule)
    due = sorted(each.due - measured.started for each in measured.answers)
    assert due == pytest.approx(schedule)
    assert sorted(measured.lateness)[len(measured.lateness) // 2] < 0.005
    assert 0 < measured.client_cpu_s < 2
    assert measured.good(within_s=10) == len(schedule)


def test_a_request_that_is_not_answered_in_time_is_lost_and_counted(tiny: Start) -> None:
    _, port = tiny(lambda number, body: after(2 if number == 2 else 0, answer(body)))
    measured = Load(port, REQUESTS).open([0.0, 0.05, 0.1], 0.1, connections=3, patience_s=0.3)
    assert measured.statuses() == {200: 2, LOST: 1}


def test_refusals_are_told_apart(tiny: Start) -> None:
    busy = answer(b"", status="429 Too Many Requests", more="Retry-After: 1\r\n")
    _, port = tiny(lambda number, body: busy if number % 2 else answer(body))
    measured = Load(port, REQUESTS).open([0.0] * 10, 0.1, connections=1)
    assert measured.statuses() == {200: 5, 429: 5}
    assert measured.good(within_s=10) == 5
    assert measured.latencies(429)["p50"] is not None


def test_a_closed_idle_connection_is_opened_again_and_nothing_is_lost(tiny: Start) -> None:
    """As uvicorn does after five idle seconds: here at once, and without saying so."""
    server, port = tiny(lambda number, body: answer(body) if number % 2 else None)
    measured = Load(port, REQUESTS).open([number * 0.02 for number in range(10)], 0.2, connections=1)
    assert measured.statuses() == {200: 10}
    assert measured.resent == 9  # every second try met a connection that was being closed
    assert server.connections == 10


def test_an_answer_that_closes_its_connection_is_followed_by_a_new_one(tiny: Start) -> None:
    server, port = tiny(lambda _, body: answer(body, more="Connection: close\r\n"))
    measured = Load(port, REQUESTS).closed(2, 0.1)
    assert measured.statuses() == {200: len(measured.answers)}
    assert server.connections >= len(measured.answers)


def test_a_request_larger_than_the_socket_takes_is_sent_whole(tiny: Start) -> None:
    sizes: list[int] = []

    def measure(_: int, body: bytes) -> bytes:
        sizes.append(len(body))
        return after(0.02, answer(b"ok"))

    _, port = tiny(measure)
    large = wire.post("/", bytes(8_000_000), "application/octet-stream")
    measured = Load(port, [large]).closed(1, 0.1)
    assert measured.statuses()[200] >= 1
    assert set(sizes) == {8_000_000}


def test_a_port_that_nobody_listens_on_is_told(free_port: int) -> None:
    with pytest.raises(Nobody):
        Load(free_port, REQUESTS).closed(2, 0.1)


def test_a_server_that_goes_away_under_load_is_told_and_not_asked_for_ever() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]

    def go(number: int, body: bytes) -> bytes | None:
        if number < 20:
            return answer(body)
        listening.close()
        return None

    server = Tiny(go)
    threading.Thread(target=server.serve, args=(listening,), daemon=True).start()
    with pytest.raises(Nobody):
        Load(port, REQUESTS).closed(2, 30)
