"""One process a fit: its checkpoints' directory is locked with flock, which a process that dies lets go."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

NAME: Final = "lock"


class Held(Exception):
    """Another process holds the lock."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder
        """Its id."""


def take(directory: Path) -> TextIO:
    """Make a directory if it is not there, and lock it until the file that is returned is closed.

    Raises:
        Held: another process holds it, or another thread of this one.
        OSError: the directory cannot be made or written.
    """
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            file = (directory / NAME).open("a+")
        except FileNotFoundError:  # whoever had it has removed it in this moment
            continue
        try:
            if _locked(file):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _locked(file: TextIO) -> bool:
    """Lock an open file; False where it was removed before it could be, so that it locks nothing."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise Held(file.read().strip() or "of an unknown id") from error
    with suppress(FileNotFoundError):
        if os.fstat(file.fileno()).st_ino == os.stat(file.name).st_ino:  # noqa: PTH116 - the name it was opened by
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            return True
    return False
