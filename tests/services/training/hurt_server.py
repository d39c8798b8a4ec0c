"""An MLflow server that can be paused and killed, and a port that falls silent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import psutil

from services.tracking.server import Server, wait_until_ready

EPOCHS = 40


class RealServer:
    """An MLflow server that can be hurt; its data base and its port stay the same."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server, self._directory = server, directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.server.command(),
                env=self.server.environment(os.environ),
                cwd=self._directory,
                stdout=log,
                stderr=log,
            )
        wait_until_ready(self.server.url, alive=lambda: self._process is not None and self._process.poll() is None)

    def send(self, number: signal.Signals) -> None:
        for process in self._tree():
            process.send_signal(number)

    def kill(self) -> None:
        tree = self._tree()
        for process in tree:
            process.kill()
        if self._process is not None:
            self._process.wait()
        psutil.wait_procs(tree, timeout=20)
        self._process = None

    def _tree(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]


class Relay:
    """A port that passes every byte on to another one, unless it is told to be silent: then it only listens."""

    def __init__(self, to: int) -> None:
        self.silent = threading.Event()
        self._to, self._closed = to, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._closed.set()
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._ends += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed by one of both
            while data := source.recv(65536):
                while self.silent.is_set() and not self._closed.is_set():
                    time.sleep(0.02)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
