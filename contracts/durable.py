"""Files and directories that are replaced whole: a kill or a power failure leaves the old content or the new one."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from pathlib import Path


def write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file by one that holds `data`; what was staged is removed where that fails.

    Args:
        path: Of the file; its directory must be there. One process at a time writes it.
        data: All of it.
        mode: Of a new file; the process' umask is taken off.

    Raises:
        OSError: the disk is full, or the file cannot be written; it is as it was.
    """
    staged = path.with_name(f".{path.name}.new")
    try:
        staged.unlink(missing_ok=True)  # of one that was killed: its mode would stay
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Flush a directory's names to the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_directory(staged: Path, path: Path) -> None:
    """Move `staged` to `path` and remove the directory that stood there; both on one file system.

    On Linux the two are exchanged in one step, so that even a kill leaves the old or the new one at `path`. Elsewhere
    the old one is moved aside first, and back if the new one cannot take its place.
    """
    if not path.exists():
        staged.rename(path)
    elif _exchange(staged, path):
        shutil.rmtree(staged, ignore_errors=True)
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
        path.rename(aside / "old")
        try:
            staged.rename(path)
        except OSError:
            (aside / "old").rename(path)
            aside.rmdir()
            raise
        shutil.rmtree(aside, ignore_errors=True)
    sync_directory(path.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step, where the system can; Python has no call for it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <linux/fs.h>
    return bool(rename(here, os.fsencode(first.absolute()), here, os.fsencode(second.absolute()), exchange) == 0)
