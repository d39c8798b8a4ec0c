"""What every hostile request is held to, whatever it is: see `Attack`."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from contracts.images import encode_png

MOST_GROWTH = 200e6
GOOD = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))


@dataclass
class Attack:
    """Sends bytes to the real service over a socket of their own.

    Afterwards, always: no 5xx and no traceback in the answers, no failure in the log, the same workers as before, no
    more than 200 MB of memory more than before everything, and a good request is answered.
    """

    service: Any
    http: httpx.Client
    memory: int
    log_bytes: int
    workers: list[int]

    def __call__(self, *sent: bytes, status: int | tuple[int, ...] | None, code: str = "") -> None:
        """Send the pieces, a moment apart, and read until the server ends the connection.

        Args:
            status: of the first answer, or what it may be; None where the connection is ended without one.
            code: of the problem that the first answer tells.
        """
        received = self.exchange(*sent)
        statuses = [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]
        final = [found for found in statuses if found != 100]
        allowed = status if isinstance(status, tuple) else (status,)
        assert next(iter(final), None) in allowed, received[:2000]
        assert all(found < 500 for found in statuses), received[:2000]
        assert b"Traceback" not in received
        if code:
            problem = json.loads(received.partition(b"\r\n\r\n")[2])
            assert problem.get("code") == code, problem
            assert "\n" not in problem["detail"]
        self.unharmed()

    def exchange(self, *sent: bytes) -> bytes:
        received = b""
        with self.connect() as client:
            # The server may end the connection while more is sent; what it had answered is here all the same.
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                for number, piece in enumerate(sent):
                    if number:
                        time.sleep(0.02)  # so that it comes as a piece of its own
                    client.sendall(piece)
            with contextlib.suppress(ConnectionResetError):
                while more := client.recv(65536):
                    received += more
        return received

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.service.port), timeout=20)

    def unharmed(self) -> None:
        answer = self.http.post("/v1/predict", content=GOOD)
        assert answer.status_code == 200, answer.text
        log = self.service.log.read_bytes()[self.log_bytes :]
        assert b"Traceback" not in log, log.decode()
        assert b'"level": "error"' not in log, log.decode()
        # A library may run a program of the system for a moment: that is no worker.
        processes = [process for process in family(self.service) if process.pid in self.workers]
        assert [process.pid for process in processes] == self.workers
        until = time.monotonic() + 30  # a decoding that was given up at its deadline still ends by itself
        while sum(process.memory_info().rss for process in processes) - self.memory >= MOST_GROWTH:
            assert time.monotonic() < until
            time.sleep(0.1)


def family(service: Any) -> list[psutil.Process]:
    supervisor = psutil.Process(service.process.pid)
    return [supervisor, *supervisor.children(recursive=True)]


@pytest.fixture(scope="session")
def _attack(plain: Any) -> Iterator[Attack]:
    with httpx.Client(base_url=plain.url, timeout=20) as http:
        for _ in range(50):  # the memory of a service that has been used
            http.post("/v1/predict", content=GOOD)
        plain.settle()
        processes = family(plain)
        memory = sum(process.memory_info().rss for process in processes)
        yield Attack(plain, http, memory, plain.log.stat().st_size, [process.pid for process in processes])


@pytest.fixture
def attack(_attack: Attack) -> Attack:
    """All attacks of a session are on one service, one after the other: what one leaves behind, the next one finds."""
    _attack.log_bytes = _attack.service.log.stat().st_size
    return _attack
