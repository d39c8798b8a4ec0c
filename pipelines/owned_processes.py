"""Processes that are ours: those that carry a random token in their environment, as all children of a carrier do.

By the token a recycled process id is never signalled, and a worker that outlived its parent is still found.
"""

from __future__ import annotations

import time
from typing import Final

import psutil

TOKEN: Final = "STRIDE_SERVER_TOKEN"  # noqa: S105 - the name of a variable
_POLL_S: Final = 0.02


def members(token: str) -> list[psutil.Process]:
    """Every living process that carries the token."""
    return [process for process in psutil.process_iter() if _token(process) == token]


def end(token: str, *, grace_s: float) -> bool:
    """SIGTERM to every process that carries the token, SIGKILL to those that are left after the grace.

    Returns:
        Whether there was one.
    """
    ours = members(token)
    for process in ours:
        _signal(process, kill=False)
    left = _outliving(ours, grace_s)
    # A supervisor may have replaced a worker while it was told to end, hence look again until there is none.
    while left or (left := members(token)):
        for process in left:
            _signal(process, kill=True)
        left = _outliving(left, 2.0)
    return bool(ours)


def alive(pid: int, started: float) -> bool:
    """Whether the process of this id lives and was created at `started`, in seconds since the epoch."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) <= 1 and _lives(process)
    except psutil.NoSuchProcess:
        return False


def _outliving(processes: list[psutil.Process], within_s: float) -> list[psutil.Process]:
    """Those that still live after so many seconds; returns once there is none.

    Who is dead and only waits to be collected by its parent is not waited for: the parent may be waiting for us.
    """
    deadline = time.monotonic() + within_s
    while (living := [process for process in processes if _lives(process)]) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return living


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:  # psutil compares the start time first, so that a recycled id is not signalled
        process.kill() if kill else process.terminate()
    except psutil.NoSuchProcess:
        return


def _token(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(TOKEN)
    except (psutil.Error, OSError):  # another user's, or gone while we looked
        return None
