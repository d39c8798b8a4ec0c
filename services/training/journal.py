"""What an open run logs, on this machine's disk before it is anywhere else: one directory a run.

    $STRIDE_HOME/journal/<run_id>/
      journal.jsonl   one entry a line with its checksum and sequence number; only ever appended to
      state.json      how far the tracking server has taken them, and what it refused
      spool/          the files and pictures that entries name, until they are taken
      lock            held by the one process that writes or replays

An entry that has been appended outlives `kill -9` at once: the operating system has it. The disk has it about a second
later (`services.training.journal_flusher`, in a thread that no fit waits for), so that a power failure takes the last
second at most, and nothing that the server was said to have. Files are flushed before the entries that name them. A
last line that was cut off is dropped with a warning.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, Self

from contracts import durable, places
from contracts.errors import FitError
from services.training import journal_entry, journal_lock
from services.training.journal_entry import Entry
from services.training.journal_spool import Spool

_LINES: Final = "journal.jsonl"
_STATE: Final = "state.json"
_SPOOL: Final = "spool"
_GONE: Final = ".gone-"
_AT_ONCE: Final = 500
"""Entries that are read at once: what is held in memory does not grow with the time that a server is away."""

_log = logging.getLogger(__name__)


def root() -> Path:
    """The directory of all journals; it need not exist."""
    return places.home() / "journal"


def directories() -> list[Path]:
    """Of every journal, in the order of the runs' ids; what a kill has left of a deleted one is removed."""
    found = sorted(path for path in root().iterdir() if path.is_dir()) if root().exists() else []
    for path in found:
        if path.name.startswith(_GONE):
            shutil.rmtree(path, ignore_errors=True)
    return [path for path in found if not path.name.startswith(_GONE)]


def peek(directory: Path) -> tuple[list[Entry], int, dict[int, str]]:
    """Entries, the last one that was acknowledged and the refused ones of a journal that others may have open."""
    acknowledged, _, refused = _read_state(directory / _STATE)
    return list(journal_entry.read(directory / _LINES)), acknowledged, refused


def size(directory: Path) -> int:
    """Bytes that a journal takes; files that go while they are looked at do not count."""
    total = 0
    for parent, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(parent, name).stat().st_size
    return total


class Journal:
    """The journal of one run, locked until it is closed. One thread may send while others append.

    with Journal.open(run_id) as journal:
        journal.append("tags", {"values": {"a": "b"}})
        entries = journal.unsent()
        ...
        journal.acknowledge(entries)
    """

    def __init__(self, directory: Path, lock: IO[bytes]) -> None:
        """Of a locked directory; see `open`."""
        self.path, self.run_id = directory, directory.name
        self._lock, self._closed = lock, False
        # Two, so that who appends does not wait while what was sent is noted and made safe on the disk.
        self._appending, self._noting = threading.Lock(), threading.Lock()
        last, self._size = journal_entry.recover(directory / _LINES)
        self.acknowledged, self._sent_to, self.refused = _read_state(directory / _STATE)
        # After a power failure the state may be of lines that are gone.
        self.last, self._sent_to = max(last, self.acknowledged), min(self._sent_to, self._size)
        self._spool = Spool(directory / _SPOOL)
        self._clear_spool()
        new = not (directory / _LINES).exists()
        self._file = os.open(directory / _LINES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if new:
            durable.sync_directory(directory)
            durable.sync_directory(directory.parent)
        self.flushed = self.last
        """The last entry that the disk has."""

    @classmethod
    def open(cls, run_id: str, *, create: bool = True, wait_s: float = 0.0) -> Self:
        """Open a run's journal.

        Args:
            run_id: Of the run.
            create: Whether one is made where there is none.
            wait_s: How long to wait for another process that has it open: what was killed may leave children behind,
                which end on their own.

        Raises:
            Busy: another process has it open.
            FileNotFoundError: there is none, and none is to be made.
            FitError: the disk does not take it.
        """
        directory = root() / run_id
        if not re.fullmatch(r"\w[\w-]*", run_id):  # an id leads nowhere else
            raise FileNotFoundError(run_id)
        try:
            lock = journal_lock.acquire(directory, create=create, wait_s=wait_s)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _disk(directory, error) from error
        try:
            return cls(directory, lock)
        except BaseException as error:
            lock.close()
            if isinstance(error, OSError):
                raise _disk(directory, error) from error
            raise

    @property
    def drained(self) -> bool:
        """Whether the server has taken, or refused for good, all that was appended."""
        return self._sent_to >= self._size

    def append(self, kind: str, content: Mapping[str, Any]) -> None:
        """Add an entry; the operating system has it when this returns. May be called from several threads.

        Raises:
            FitError: the disk does not take it, or the journal is closed; it is as it was.
        """
        with self._appending:
            if self._closed:  # the file's number may be another one's by now
                raise FitError(
                    f"run {self.run_id}: an entry {kind!r} came after the run's end, none was expected any more; log "
                    "it before the run ends."
                )
            # What is counted is counted first: a signal may be raised between any two lines.
            self.last += 1
            line = journal_entry.encode(self.last, kind, content)
            end = os.fstat(self._file).st_size
            self._size = end + len(line)
            try:
                written = os.write(self._file, line)
                if written < len(line):
                    raise OSError(f"{written} of {len(line)} bytes were written")
            except OSError as error:
                with suppress(OSError):  # half a line would spoil the next one
                    os.ftruncate(self._file, end)
                self._size = end
                raise _disk(self.path, error) from error

    def spool(self, name: str, data: bytes) -> dict[str, Any]:
        """Keep the bytes of a file under `name`; what is returned is the `spool` of the entry that names it.

        Raises:
            FitError: the disk does not take it; nothing is left of it.
        """
        try:
            return self._spool.keep(name, data)
        except OSError as error:
            raise _disk(self.path, error) from error

    def flush(self) -> None:
        """Have the disk hold what was appended and spooled until now; who appends does not wait meanwhile.

        Raises:
            OSError: the disk does not take it; the next call tries again.
        """
        with self._noting:
            if not self._closed:
                self._flush()

    def _flush(self) -> None:
        # Files before the entries that name them: those that were appended by now are spooled by then.
        with self._appending:
            last = self.last
        files = self._spool.unflushed()
        if last == self.flushed and not files:
            return
        self._spool.flush(files)
        os.fdatasync(self._file)
        self.flushed = last

    def spooled(self, entry: Entry) -> Path:
        """The file that an entry names, under its name.

        Raises:
            ValueError: it is missing or damaged, as a power failure may leave it.
        """
        return self._spool.find(entry.content["spool"])

    def entries(self) -> Iterator[Entry]:
        """Every entry, from the first."""
        return journal_entry.read(self.path / _LINES)

    def unsent(self) -> list[Entry]:
        """The next entries that are not acknowledged, oldest first."""
        found: list[Entry] = []
        for entry in journal_entry.read(self.path / _LINES, self._sent_to):
            if len(found) == _AT_ONCE:
                break
            if entry.sequence > self.acknowledged:
                found.append(entry)
        return found

    def acknowledge(self, entries: Sequence[Entry], refused: Mapping[int, str]) -> None:
        """Note that the server has taken entries, and drop their files.

        Args:
            entries: The next ones of `unsent`, or ones that were refused before.
            refused: Of these, why it will never take them, by sequence number; their files stay.
        """
        done = {entry.sequence for entry in entries}
        with self._noting:
            if self._closed:  # by one who would not wait any longer for the thread that sends
                return
            os.fdatasync(self._file)  # a state must not be of lines that the disk does not have
            self.refused = {n: why for n, why in self.refused.items() if n not in done} | dict(refused)
            self._sent_to = max(self._sent_to, *(entry.end for entry in entries))
            acknowledged = max(self.acknowledged, *done)
            state = {"acknowledged": acknowledged, "offset": self._sent_to, "refused": self.refused}
            durable.write(self.path / _STATE, json.dumps(state).encode())
            for entry in entries:
                if "spool" in entry.content and entry.sequence not in refused:
                    self._spool.drop(entry.content["spool"]["token"])
            self.acknowledged = acknowledged

    def close(self) -> None:
        """Let another process have it; the disk has all of it then."""
        try:
            self.flush()
        except OSError as error:
            _log.warning("journal %s: the disk may not hold all of it (%s)", self.path, error.strerror or error)
        with self._noting, self._appending:
            if not self._closed:
                self._closed = True
                os.close(self._file)
                self._lock.close()

    def delete(self) -> None:
        """Remove it from the disk and close it; it must be open."""
        with self._noting, self._appending:
            # Away at once and whole: half a journal would look like one whose files are lost.
            gone = self.path.with_name(f"{_GONE}{self.run_id}")
            shutil.rmtree(gone, ignore_errors=True)
            self.path.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            os.close(self._file)
            self._lock.close()
            self._closed = True
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _clear_spool(self) -> None:
        """Remove files whose entry was not appended any more, or was taken in the last moment."""
        gone = self._spool.tokens()
        for entry in self.entries() if gone else ():
            if "spool" in entry.content and (entry.sequence > self.acknowledged or entry.sequence in self.refused):
                gone.discard(entry.content["spool"]["token"])
        for token in gone:
            self._spool.drop(token)


def _read_state(path: Path) -> tuple[int, int, dict[int, str]]:
    """What has been acknowledged, up to which byte, and what was refused; nothing where that is not known."""
    try:
        state = json.loads(path.read_bytes())
        refused = {int(number): why for number, why in state["refused"].items()}
        return state["acknowledged"], state["offset"], refused
    except (FileNotFoundError, ValueError, KeyError):  # all is sent again then, which changes nothing in the run
        return 0, 0, {}


def _disk(path: Path, error: OSError) -> FitError:
    return FitError(
        f"journal {path}: it cannot be written ({error.strerror or error}), a disk with room for what the run logs was "
        "expected; free some space or set STRIDE_HOME elsewhere, and give the same command again."
    )
