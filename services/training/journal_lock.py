"""Who may write or replay a journal: one process at a time, by a lock that the system frees when that process ends."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO, Final

from contracts.errors import RegistryError

NAME: Final = "lock"
_POLL_S: Final = 0.05


class Busy(RegistryError):
    """Another process writes or replays the journal."""


def acquire(directory: Path, *, create: bool, wait_s: float = 0.0) -> IO[bytes]:
    """The lock of a journal's directory, held until it is closed.

    Args:
        directory: Of the journal.
        create: Whether it is made where there is none.
        wait_s: How long to wait for another process.

    Raises:
        Busy: another process has it.
        FileNotFoundError: the directory is not there, and is not to be made.
    """
    deadline = time.monotonic() + wait_s
    while True:
        if create:
            directory.mkdir(parents=True, exist_ok=True)
        try:
            held = (directory / NAME).open("ab")
        except FileNotFoundError:
            if create:  # whoever had it has deleted it in this moment
                continue
            raise
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(held, directory / NAME):
                return held
        except BlockingIOError:
            if time.monotonic() >= deadline:
                held.close()
                raise Busy(
                    f"run {directory.name}: its journal {directory} is in use by another process, a free one was "
                    "expected; wait until that fit or `stride sync` has ended."
                ) from None
            time.sleep(_POLL_S)
        held.close()


def _same(held: IO[bytes], path: Path) -> bool:
    """False where whoever had it before has deleted the journal: the lock is then of a file that is gone."""
    try:
        return os.path.samestat(os.fstat(held.fileno()), path.stat())
    except FileNotFoundError:
        return False
