"""A contender's side of taking turns: one line of JSON after every epoch, then it waits for its next turn.

    {"event": "ready", ...}   imported, data read, network built; nothing is fitted yet
    {"event": "epoch", ...}   one epoch is done, with validation, logging and checkpoints of the epoch before
    {"event": "done", ...}    the fit is over

Standard library only: the contenders' environments have nothing else in common.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1


class Turns:
    """The line to the benchmark. Whatever else a contender prints goes to standard error from now on."""

    def __init__(self) -> None:
        _end_with_parent()
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._epoch = 0
        self._wall = self._cpu = 0.0

    def ready(self, **facts: Any) -> None:
        """Say that the fit could begin, and wait until it may."""
        self._say("ready", peak_bytes=peak_bytes(), **facts)
        self._wait()

    def epoch(self, metrics: dict[str, float], *, judge: Callable[[], float]) -> None:
        """Report an epoch, and wait for the next turn.

        Args:
            metrics: What the contender knows of the epoch.
            judge: Gives the accuracy on the test images; called when the clock has stopped.
        """
        seconds, cpu = time.perf_counter() - self._wall, cpu_seconds() - self._cpu
        self._epoch += 1
        accuracy = judge()
        self._say("epoch", epoch=self._epoch, seconds=seconds, cpu_seconds=cpu, test_accuracy=accuracy, **metrics)
        self._wait()

    def done(self, **facts: Any) -> None:
        """Say that the fit is over; `seconds` is what came after its last epoch."""
        self._say("done", seconds=time.perf_counter() - self._wall, peak_bytes=peak_bytes(), **facts)

    def _say(self, event: str, **content: Any) -> None:
        self._answers.write(json.dumps({"event": event, **content}) + "\n")
        self._answers.flush()

    def _wait(self) -> None:
        if not sys.stdin.readline():  # the benchmark is gone: nobody would hear the rest
            raise SystemExit(1)
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()


def _end_with_parent() -> None:
    """Be killed when the benchmark dies, however it does: a contender that is stopped would never notice (Linux)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)) or os.getppid() != parent:  # or it has died in between
        raise SystemExit("the benchmark is gone")


def cpu_seconds() -> float:
    """Of this process, all its threads, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def peak_bytes() -> int:
    """The most memory that this process has held at once (resident)."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child starts at its parent's
        found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)
        if found:
            return int(found.group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
