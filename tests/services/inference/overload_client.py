"""python overload_client.py PORT closed CONNECTIONS SECONDS [FILE] | open RATE SECONDS [FILE]

A client in a process of its own: its work must not look like the server's. Sends FILE, or a gray PNG of 8 x 8. Prints
"ready" once it is connected, waits for a line, and prints JSON: the good answers that came within the time, the
latencies of each status, and how many 429s said when to come again. `open` sends at that mean rate with Poisson
arrivals, whether or not answers come. A latency counts from when the request was due; a refusal's from when it was
sent, since it is the server that is to be quick with it, and not this client.
"""

from __future__ import annotations

import asyncio
import json
import random
import struct
import sys
import time
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast


def image() -> bytes:
    """A gray PNG of 8 x 8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 72)) + chunk(b"IEND", b"")


CONNECTIONS = 1024
"""Of an open load; what is due while all of them wait for their answers waits in the client."""


class Connection(asyncio.Protocol):
    """One request at a time; asyncio's streams would cost the client more than the server."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        """The head of the answer, once it is whole."""
        self._received = b""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank or self._answer is None:
            return
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            self._answer.set_result(head)
            self._answer = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None:
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))


@dataclass
class Load:
    port: int
    seconds: float
    request: bytes
    good: int = 0
    told_when: int = 0
    latencies: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    idle: asyncio.LifoQueue[Connection] = field(default_factory=asyncio.LifoQueue)

    async def connect(self, connections: int) -> None:
        """Make them beforehand: they cost the server more than a request does. Then wait for a line."""
        loop = asyncio.get_running_loop()
        for _ in range(connections):
            self.idle.put_nowait((await loop.create_connection(Connection, "127.0.0.1", self.port))[1])
        await self.ask(0.0, 0.0)  # the last one is answered when the server has taken all of them
        self.latencies.clear()
        self.told_when = 0
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()

    async def ask(self, due: float, ends: float) -> bool:
        connection = await self.idle.get()
        sent = time.perf_counter()
        head = await connection.ask(self.request)
        now = time.perf_counter()
        status = head[9:12].decode()
        self.latencies[status].append(now - (sent if status == "429" else due))
        self.good += status == "200" and now < ends
        self.told_when += b"\r\nretry-after: " in head
        self.idle.put_nowait(connection)
        return status == "200"

    async def closed(self, connections: int) -> None:
        await self.connect(connections)
        ends = time.perf_counter() + self.seconds

        async def client() -> None:
            while (now := time.perf_counter()) < ends:
                if not await self.ask(now, ends):
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(client() for _ in range(connections)))

    async def open(self, rate: float) -> None:
        await self.connect(CONNECTIONS)
        due = time.perf_counter()
        ends = due + self.seconds
        asked = []
        while due < ends:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            asked.append(asyncio.ensure_future(self.ask(due, ends)))
            due += random.expovariate(rate)
        await asyncio.gather(*asked)


def main() -> None:
    port, kind, amount, seconds = sys.argv[1:5]
    body = Path(sys.argv[5]).read_bytes() if len(sys.argv) > 5 else image()
    request = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    load = Load(int(port), float(seconds), request)
    asyncio.run(load.open(float(amount)) if kind == "open" else load.closed(int(amount)))
    sys.stdout.write(json.dumps({"good": load.good, "told_when": load.told_when, "latencies": load.latencies}))


if __name__ == "__main__":
    main()
