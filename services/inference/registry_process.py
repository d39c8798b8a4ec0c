"""The registry, asked by a process of its own.

A look at MLflow and the fetching of a bundle are much Python. In a thread they would take turns with the event loop at
the interpreter's lock, half of the time each whatever their priority is, and a service at two thirds of its peak would
fall behind for as long as a swap takes. A process of low priority has what serving leaves.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from contracts.errors import RegistryError
from contracts.registry import Quarantine
from services.inference.pins import Pin
from services.inference.registry import Registered, Registry, Wanted, shown

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

    def look(self, names: tuple[str, ...], pins: Mapping[str, Pin]) -> list[Registered]:
        found: list[Registered] = self._ask("look", names, dict(pins))
        return found

    def download(self, wanted: Wanted, directory: Path) -> Path:
        path: Path = self._ask("download", wanted, directory)
        return path

    def mark(self, wanted: Wanted, quarantine: Quarantine | None) -> None:
        self._ask("mark", wanted, quarantine)

    def end(self) -> None:
        """End the process, whatever it is doing; from any thread. Nothing is asked any more."""
        self._over = True
        self._drop()

    def _ask(self, what: str, *arguments: Any) -> Any:
        process = self._running()
        try:
            pickle.dump((what, arguments), cast("BinaryIO", process.stdin))
            cast("BinaryIO", process.stdin).flush()
            good, found = pickle.load(cast("BinaryIO", process.stdout))  # noqa: S301 - it is our own program that answers
        except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
            self._drop()
            ended = f"the process that asks the registry at {shown(self.uri)} has ended ({process.returncode})"
            raise RegistryError(f"{ended}; its output says why, and it is started again.") from error
        if not good:
            raise RegistryError(found)
        return found

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            if self._over:
                raise RegistryError(f"the registry at {shown(self.uri)} is asked no more: the service ends.")
            command = [sys.executable, "-m", "services.inference.registry_process", self.uri]
            try:
                self._process = subprocess.Popen(  # noqa: S603 - our own program
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
                )
            except OSError as error:
                reason = f"{error.strerror or error}"
                raise RegistryError(f"the process that asks the registry cannot be started ({reason}).") from error
        return self._process

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what could not be written any more
                        pipe.close()


def serve(registry: Registry, questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until nobody can ask any more."""
    while True:
        try:
            what, arguments = pickle.load(questions)  # noqa: S301 - from the process that has started this one
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            answer = True, getattr(registry, what)(*arguments)
        except RegistryError as error:
            answer = False, error.message
        try:
            pickle.dump(answer, answers)
            answers.flush()
        except BrokenPipeError:
            return


def main(uri: str) -> None:
    for told in (signal.SIGINT, signal.SIGTERM):  # what all of a service are told; the worker ends this one
        signal.signal(told, signal.SIG_IGN)
    os.nice(_NICE)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand among the answers
    serve(Registry(uri), sys.stdin.buffer, answers)
    os._exit(0)  # no need to wait for what MLflow has left running


if __name__ == "__main__":
    main(sys.argv[1])
