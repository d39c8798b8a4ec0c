"""The files and pictures that a journal's entries name, each in a directory of its own until it is taken."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from contracts import durable


class Spool:
    """The directory spool/ of one journal. Several threads may keep files while one takes and drops them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._unflushed: list[Path] = []
        """Files that the disk may not have."""

    def keep(self, name: str, data: bytes) -> dict[str, Any]:
        """Write the bytes of a file under `name`; what is returned is the `spool` of the entry that names it.

        Raises:
            OSError: the disk does not take it; nothing is left of it.
        """
        token = secrets.token_hex(8)
        path = self._directory / token / name
        try:
            path.parent.mkdir(parents=True)
            path.write_bytes(data)
        except OSError:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        with self._lock:
            self._unflushed.append(path)
        return {"token": token, "name": name, "bytes": len(data), "crc32": zlib.crc32(data)}

    def find(self, kept: Mapping[str, Any]) -> Path:
        """The file of an entry's `spool`, under its name.

        Raises:
            ValueError: it is missing or damaged, as a power failure may leave it.
        """
        path: Path = self._directory / kept["token"] / kept["name"]
        if not path.exists():
            raise ValueError(f"{path} is missing")
        found = 0
        with path.open("rb") as file:
            while block := file.read(2**20):
                found = zlib.crc32(block, found)
        if (path.stat().st_size, found) != (kept["bytes"], kept["crc32"]):
            raise ValueError(f"{path} is damaged")
        return path

    def drop(self, token: str) -> None:
        shutil.rmtree(self._directory / token, ignore_errors=True)

    def tokens(self) -> set[str]:
        """Of the files that are there."""
        return {path.name for path in self._directory.iterdir()} if self._directory.exists() else set()

    def unflushed(self) -> tuple[Path, ...]:
        """The files that `flush` is to have on the disk."""
        with self._lock:
            return tuple(self._unflushed)

    def flush(self, files: Collection[Path]) -> None:
        """Have the disk hold the first ones of `unflushed`.

        Raises:
            OSError: it does not take them.
        """
        if not files:
            return
        for path in files:
            with suppress(FileNotFoundError):  # it was sent and dropped
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                durable.sync_directory(path.parent)
        with suppress(FileNotFoundError):
            durable.sync_directory(self._directory)
            durable.sync_directory(self._directory.parent)
        with self._lock:
            del self._unflushed[: len(files)]
