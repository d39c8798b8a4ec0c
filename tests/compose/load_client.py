"""A steady load on one address, counted; runs in a container of the stack's network, standard library only.

    python load_client.py HOST PORT PATH THREADS < image      # until standard input's second line, or 180 s

The first line of standard input is the body in base64. Answers one JSON object: how often each outcome was met.
`ok`, `refused` (429 or 503, a whole answer), `failed` (any other status), `unreachable` (no connection was made),
`lost` (the request was sent and no whole answer came), but `unaccepted` where that was a connection's first request and
the kernel reset it: the kernel makes connections ahead of the service, and resets those that it has not taken when it
stops listening. `lost` on a new connection that was taken looks otherwise: it ends, or ends amid an answer.
"""

from __future__ import annotations

import base64
import http.client
import json
import select
import sys
import threading
import time
from collections import Counter

_LIMIT_S = 180.0
_PAUSE_S = 0.02


class Load:
    """Requests on kept connections, as a client library with a pool sends them."""

    def __init__(self, host: str, port: int, path: str, body: bytes) -> None:
        self.host, self.port, self.path, self.body = host, port, path, body
        self.found: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self.stop.is_set():
            # The server may hang up between two requests; what it closed before we sent was never asked of it.
            if (
                connection is not None
                and connection.sock is not None
                and select.select([connection.sock], [], [], 0)[0]
            ):
                connection.close()
                connection = None
            if connection is None:
                connection = http.client.HTTPConnection(self.host, self.port, timeout=15)
            outcome, why = self._ask(connection)
            if connection.sock is None or outcome in ("unreachable", "unaccepted", "lost"):
                connection.close()
                connection = None
            with self._lock:
                self.found[outcome] += 1
                self.examples.setdefault(outcome, why)
            self.stop.wait(_PAUSE_S)

    def _ask(self, connection: http.client.HTTPConnection) -> tuple[str, str]:
        new = connection.sock is None
        if new:
            try:
                connection.connect()
            except OSError as error:
                return "unreachable", repr(error)
        try:
            connection.request("POST", self.path, self.body, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            text = answer.read()
            if answer.status == 200 and json.loads(text)["predictions"]:
                return "ok", ""
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            reset = isinstance(error, ConnectionResetError) and not isinstance(error, http.client.RemoteDisconnected)
            return ("unaccepted" if new and reset else "lost"), repr(error)
        return ("refused" if answer.status in (429, 503) else "failed"), f"{answer.status} {text[:200]!r}"


def main(host: str, port: str, path: str, threads: str) -> None:
    load = Load(host, int(port), path, base64.b64decode(sys.stdin.readline()))
    workers = [threading.Thread(target=load.run, daemon=True) for _ in range(int(threads))]
    for worker in workers:
        worker.start()
    threading.Thread(target=_until_told, args=(load.stop,), daemon=True).start()
    started = time.monotonic()
    load.stop.wait(_LIMIT_S)
    load.stop.set()
    for worker in workers:
        worker.join(20)
    seconds = time.monotonic() - started
    json.dump({**load.found, "seconds": round(seconds, 1), "examples": load.examples}, sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()


def _until_told(stop: threading.Event) -> None:
    sys.stdin.readline()
    stop.set()


if __name__ == "__main__":
    main(*sys.argv[1:])
