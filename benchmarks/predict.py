"""One warm prediction over HTTP: latency at one connection, and the server's CPU seconds for each.

    make demo && python -m benchmarks.predict [--url http://127.0.0.1:3000] [--image FILE] [--requests 2000]

Asks the running service one PNG at a time over one kept connection, in 5 rounds, and prints the medians of the rounds.
About 10 s; exits 1 where the median request takes more than 5 ms. CPU is that of the process that listens on the port
and of its children, and holds everything that a request costs there.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from contracts import places

FLOOR_MS = 5.0
ROUNDS = 5


def server_of(port: int) -> list[psutil.Process]:
    sockets = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr]
    listening = {c.pid for c in sockets if c.laddr and c.laddr.port == port}
    found = [psutil.Process(pid) for pid in listening if pid]
    return list({process.pid: process for root in found for process in (root, *root.children(recursive=True))}.values())


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def ask(connection: http.client.HTTPConnection, body: bytes) -> float:
    started = time.perf_counter()
    connection.request("POST", "/v1/predict", body, {"Content-Type": "image/png"})
    answer = connection.getresponse()
    content = answer.read()
    elapsed = time.perf_counter() - started
    assert answer.status == 200, content
    return elapsed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--image", type=Path, help="default: the one that `make demo` wrote")
    parser.add_argument("--requests", type=int, default=2000)
    options = parser.parse_args()
    image = options.image or next(iter(sorted((places.home() / "demo").glob("*.png"))), None)
    if image is None:
        parser.error("no image: run `make demo` first, or give --image FILE")
    address = urlsplit(options.url)
    connection = http.client.HTTPConnection(address.hostname or "127.0.0.1", address.port or 3000, timeout=10)
    body = image.read_bytes()
    try:
        for _ in range(200):
            ask(connection, body)
    except OSError as error:
        parser.error(f"{options.url} does not answer ({error}); run `make demo` first")
    processes = server_of(address.port or 3000)
    rounds: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS):
        before = cpu_seconds(processes)
        times = sorted(ask(connection, body) for _ in range(options.requests // ROUNDS))
        cpu = (cpu_seconds(processes) - before) / len(times)
        rounds.append((times[len(times) // 2] * 1e3, times[int(len(times) * 0.99)] * 1e3, cpu * 1e3))
    p50, p99, cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
    spread = f"{min(r[0] for r in rounds):.2f}-{max(r[0] for r in rounds):.2f}"
    print(f"one PNG of {len(body)} bytes, one connection, {ROUNDS} rounds of {options.requests // ROUNDS}:")
    print(f"  p50 {p50:.2f} ms ({spread}), p99 {p99:.2f} ms, server CPU {cpu:.2f} ms a prediction")
    return 0 if p50 <= FLOOR_MS else 1


if __name__ == "__main__":
    raise SystemExit(main())
