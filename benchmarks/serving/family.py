"""A server under measurement: started on one core, watched with all its children, ended without a rest.

Every process carries a token in its environment, by which `owned_processes` finds and ends it. Some programs write
their title over their environment; those are known by their parent or their session.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import psutil

from contracts.errors import StrideError
from pipelines import owned_processes, processes

_GRACE_S: Final = 10.0


class Unfit(StrideError):
    """A server that cannot be measured, or not to the end; the others still can."""

    code = "server_unfit"


class Family:
    """One server and every process that it made."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        core: int,
        environment: Mapping[str, str],
        log: Path,
        talks: bool = False,
    ) -> None:
        """Start it.

        Args:
            command: of the leader; runs in the repository's root.
            core: the only one that it may use.
            environment: all of it.
            log: gets its output, from the beginning.
            talks: it is asked and answers in lines, on its standard input and output.
        """
        self.name = name
        self.log = log
        self._token = secrets.token_hex(16)
        self._known: dict[tuple[int, float], psutil.Process] = {}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output, on_core(core):
            self._leader = subprocess.Popen(  # noqa: S603 - the command is one of our own
                command,
                cwd=processes.ROOT,
                env={**environment, owned_processes.TOKEN: self._token},
                stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
                stdout=subprocess.PIPE if talks else output,
                stderr=output,
                text=True,
                start_new_session=True,  # the terminal's Ctrl-C is ours: it ends them in order
            )

    def members(self) -> list[psutil.Process]:
        """Every living process of it."""
        found = {process.pid: process for process in owned_processes.members(self._token)}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if os.getsid(process.pid) == self._leader.pid:
                    found[process.pid] = process
        for process in [*found.values(), *self._known.values()]:
            with suppress(psutil.Error):
                found.update({child.pid: child for child in process.children(recursive=True)})
        for process in found.values():
            with suppress(psutil.Error):
                self._known.setdefault((process.pid, process.create_time()), process)
        return [process for process in self._known.values() if _lives(process)]

    def cpu_s(self) -> float:
        """Processor time of all of them so far, in seconds; to the microsecond, but for children that have ended."""
        # First those that are known: to look for others takes longer than a request.
        before = {key: _cpu_s(process) for key, process in self._known.items()}
        self.members()
        return sum(before.values()) + sum(_cpu_s(self._known[key]) for key in self._known.keys() - before.keys())

    def memory(self) -> int:
        """Resident bytes of all of them; what several share is counted once."""
        total = 0
        for process in self.members():
            with suppress(psutil.Error):
                total += int(process.memory_full_info().pss)
        return total

    @property
    def alive(self) -> bool:
        return self._leader.poll() is None

    def has_ended(self, *, within_s: float) -> bool:
        """Whether the leader is gone, or goes in that time."""
        try:
            self._leader.wait(timeout=within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ask(self, line: str) -> str:
        """Write a line to it, and read the line that it answers.

        Raises:
            Unfit: it has ended, or does not talk.
        """
        stdin, stdout = self._leader.stdin, self._leader.stdout
        try:
            assert stdin is not None
            assert stdout is not None
            stdin.write(f"{line}\n")
            stdin.flush()
            answer = stdout.readline()
        except (OSError, ValueError) as error:  # ValueError: it was ended by us
            raise Unfit(f"{self.name} does not listen ({error}); its log ends:\n{processes.tail(self.log)}") from error
        if not answer:
            raise Unfit(f"{self.name} ended when it was asked; its log ends:\n{processes.tail(self.log)}")
        return answer

    def wait(self, ready: Callable[[], bool], *, within_s: float) -> float:
        """Wait until `ready`; the seconds that it took.

        Raises:
            Unfit: it ended, or was not ready in time.
        """
        started = time.monotonic()
        while not ready():
            if not self.alive:
                raise Unfit(f"{self.name} ended before it was ready; its log ends:\n{processes.tail(self.log)}")
            if time.monotonic() - started > within_s:
                raise Unfit(f"{self.name} was not ready in {within_s:.0f} s; its log ends:\n{processes.tail(self.log)}")
            time.sleep(0.05)
        return time.monotonic() - started

    def end(self) -> None:
        """SIGTERM to all of them, SIGKILL to those that are left after the grace."""
        known = self.members()
        owned_processes.end(self._token, grace_s=_GRACE_S)
        left = [process for process in known if _lives(process)]
        for process in left:
            with suppress(psutil.Error):
                process.terminate()
        _, left = psutil.wait_procs(left, timeout=3)
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=3)
        for stream in (self._leader.stdin, self._leader.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        with suppress(subprocess.TimeoutExpired):
            self._leader.wait(timeout=5)

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """What is started in here may use this core only; the caller's own affinity comes back."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cpu_s(process: psutil.Process) -> float:
    try:
        # The process' own clock: to the nanosecond, where /proc counts in hundredths of a second.
        own = time.clock_gettime((~process.pid << 3) | 2)
        times = process.cpu_times()
    except (psutil.Error, OSError):  # it has ended; its parent has its time
        return 0.0
    return own + times.children_user + times.children_system


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
