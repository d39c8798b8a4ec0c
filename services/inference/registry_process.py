"""The registry, asked by a process of its own.

A look at MLflow and the fetching of a bundle are much Python. In a thread they would take turns with the event loop at
the interpreter's lock, half of the time each whatever their priority is, and a service at two thirds of its peak would
fall behind for as long as a swap takes. A process of low priority has what serving leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from contracts.errors import RegistryError
from contracts.registry import Quarantine, Rollout
from services.inference.pins import Pin
from services.inference.registry import Registered, Registry, Wanted, shown

_ROOT: Final = Path(__file__).parents[2]
_BROKEN: Final = (OSError, ValueError, TypeError)
"""What a pipe can raise that ends amid an answer, or that something else has written to."""
_NICE: Final = 10
"""A tenth of the share that serving has where both want the same core; Linux and macOS."""


class RegistryProcess:
    """As `Registry`; the process is started when it is first asked, and again when it has ended.

    Blocking, and to be used from one thread, but for `end`. Every method raises RegistryError as `Registry` does, and
    where the process has ended.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False
        self._lock = threading.Lock()
        """Of the two above."""

    def look(self, names: tuple[str, ...], pins: Mapping[str, Pin]) -> list[Registered]:
        found = self._ask("look", names, {name: asdict(pin) for name, pin in pins.items()})
        return [_registered(each) for each in found]

    def download(self, wanted: Wanted, directory: Path) -> Path:
        return Path(self._ask("download", asdict(wanted), str(directory)))

    def mark(self, wanted: Wanted, quarantine: Quarantine | None) -> None:
        self._ask("mark", asdict(wanted), None if quarantine is None else asdict(quarantine))

    def end(self) -> None:
        """End the process, whatever it is doing; from any thread. Nothing is asked any more."""
        with self._lock:
            self._over = True
        self._drop()

    def _ask(self, what: str, *arguments: Any) -> Any:
        process = self._running()
        try:
            _write([what, *arguments], cast("BinaryIO", process.stdin))
            good, found = json.loads(cast("BinaryIO", process.stdout).readline())
        except _BROKEN as error:
            self._drop()
            ended = f"the process that asks the registry at {shown(self.uri)} has ended ({process.returncode})"
            raise RegistryError(f"{ended}; its output says why, and it is started again.") from error
        if not good:
            raise RegistryError(found)
        return found

    def _running(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._over:
                raise RegistryError(f"the registry at {shown(self.uri)} is asked no more: the service ends.")
            if (process := self._process) is not None:
                return process
            path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            try:
                process = self._process = subprocess.Popen(
                    [sys.executable, "-m", "services.inference.registry_process"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
                )
                # Not in its command line, which everybody may read.
                _write([self.uri, os.getpid()], cast("BinaryIO", process.stdin))
            except OSError as error:
                reason = f"{error.strerror or error}"
                raise RegistryError(f"the process that asks the registry cannot be started ({reason}).") from error
            return process

    def _drop(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what could not be written any more
                        pipe.close()


def _write(content: object, pipe: BinaryIO) -> None:
    pipe.write(json.dumps(content).encode() + b"\n")
    pipe.flush()


def _wanted(content: dict[str, Any]) -> Wanted:
    quarantine = content["quarantine"]
    return Wanted(**{**content, "quarantine": None if quarantine is None else Quarantine(**quarantine)})


def _registered(content: dict[str, Any]) -> Registered:
    versions = {key: None if content[key] is None else _wanted(content[key]) for key in ("wanted", "challenger")}
    return Registered(**{**content, **versions, "rollout": Rollout(**content["rollout"])})


def answer(registry: Registry, what: str, *arguments: Any) -> Any:
    """What a question comes to, for JSON.

    Raises:
        RegistryError: as `Registry`.
    """
    if what == "look":
        names, pins = arguments
        found = registry.look(tuple(names), {name: Pin(**pin) for name, pin in pins.items()})
        return [asdict(each) for each in found]
    wanted, other = _wanted(arguments[0]), arguments[1]
    if what == "download":
        return str(registry.download(wanted, Path(other)))
    return registry.mark(wanted, None if other is None else Quarantine(**other))


def serve(registry: Registry, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until nobody can ask any more."""
    for line in questions:
        try:
            told = [True, answer(registry, *json.loads(line))]
        except RegistryError as error:
            told = [False, error.message]
        try:
            _write(told, answers)
        except BrokenPipeError:
            return


def main() -> None:
    for told in (signal.SIGINT, signal.SIGTERM):  # what all of a service are told; the worker ends this one
        signal.signal(told, signal.SIG_IGN)
    os.nice(_NICE)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    if not (line := sys.stdin.buffer.readline()):
        return
    uri, worker = json.loads(line)
    threading.Thread(target=_end_with, args=(worker,), daemon=True).start()
    serve(Registry(uri), sys.stdin.buffer, answers)
    os._exit(0)  # no need to wait for what MLflow has left running


def _end_with(worker: int) -> None:
    """A worker that is killed cannot end this process, and a download may hang for long."""
    while os.getppid() == worker:
        time.sleep(1)
    os._exit(0)


if __name__ == "__main__":
    main()
