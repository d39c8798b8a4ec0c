"""python overload_client.py PORT closed CONNECTIONS SECONDS | open RATE SECONDS

A client in a process of its own: its work must not look like the server's. Prints JSON: the good answers that came
within the time, the latencies of each status, from when a request was due, and how many 429s said when to come again.
`open` sends at that mean rate with Poisson arrivals, whether or not the answers come.
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

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def image() -> bytes:
    """A gray PNG of 8 x 8."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 72)) + chunk(b"IEND", b"")


BODY = image()
REQUEST = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@dataclass
class Load:
    port: int
    seconds: float
    good: int = 0
    told_when: int = 0
    latencies: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    idle: list[Connection] = field(default_factory=list)

    async def ask(self, due: float, ends: float) -> bool:
        if not self.idle:
            self.idle.append(await asyncio.open_connection("127.0.0.1", self.port))
        reader, writer = connection = self.idle.pop()
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        await reader.readexactly(int(fields[b"content-length"]))
        now = time.perf_counter()
        status = head[9:12].decode()
        self.latencies[status].append(now - due)
        self.good += status == "200" and now < ends
        self.told_when += b"retry-after" in fields
        self.idle.append(connection)
        return status == "200"

    async def closed(self, connections: int) -> None:
        ends = time.perf_counter() + self.seconds

        async def client() -> None:
            while (now := time.perf_counter()) < ends:
                if not await self.ask(now, ends):
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(client() for _ in range(connections)))

    async def open(self, rate: float) -> None:
        due = time.perf_counter()
        ends = due + self.seconds
        asked = []
        while due < ends:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            asked.append(asyncio.ensure_future(self.ask(due, ends)))
            due += random.expovariate(rate)
        await asyncio.gather(*asked)


def main() -> None:
    port, kind, amount, seconds = sys.argv[1:]
    load = Load(int(port), float(seconds))
    asyncio.run(load.open(float(amount)) if kind == "open" else load.closed(int(amount)))
    sys.stdout.write(json.dumps({"good": load.good, "told_when": load.told_when, "latencies": load.latencies}))


if __name__ == "__main__":
    main()
