"""One entry of a run's journal, as the line of JSON that holds it: checksum, sequence number, kind and content.

    {"crc32":"5e0cc5f0","sequence":7,"kind":"tags","content":{"values":{"a":"b"}}}

The checksum is of the line without itself, so that a line which a kill or a power failure has cut is known as such.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_HEAD: Final = b'{"crc32":"'
_DIGITS: Final = 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Entry:
    """What was logged in one call."""

    sequence: int
    """From 1, without gaps where no line was lost."""
    kind: str
    content: dict[str, Any]
    end: int
    """Where the next line begins, in bytes."""


def encode(sequence: int, kind: str, content: Mapping[str, Any]) -> bytes:
    """The line of an entry; `content` is JSON without NaN."""
    fields = {"sequence": sequence, "kind": kind, "content": content}
    body = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode()
    return b'%s%08x",%s\n' % (_HEAD, zlib.crc32(body), body[1:])


def decode(line: bytes, end: int = 0) -> Entry | None:
    """The entry of a line that ends at byte `end`; None where the line is not as it was written."""
    at = len(_HEAD)
    body = b"{" + line[at + _DIGITS + 2 : -1]
    if not line.startswith(_HEAD) or not line.endswith(b"}\n") or line[at : at + _DIGITS] != b"%08x" % zlib.crc32(body):
        return None
    fields = json.loads(body)
    return Entry(fields["sequence"], fields["kind"], fields["content"], end)


def read(path: Path, offset: int = 0) -> Iterator[Entry]:
    """The entries from a byte offset to the last whole line; damaged lines are left out (`recover` names them)."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):  # still being written: its rest must not be taken for a damaged line
                return
            offset += len(line)
            entry = decode(line, offset)
            if entry is not None:
                yield entry


def recover(path: Path) -> tuple[int, int]:
    """Make a journal that its writer has left fit to be appended to: cut off what stands behind its last good line.

    Returns:
        The sequence number of the last entry (0 without one), and where it ends.
    """
    if not path.exists():
        return 0, 0
    last, end, bad, line_number = 0, 0, [], 0
    with path.open("r+b") as file:
        offset = 0
        for line_number, line in enumerate(file, start=1):
            offset += len(line)
            entry = decode(line, offset)
            if entry is None:
                bad.append(line_number)
            else:
                last, end = entry.sequence, offset
                if bad:
                    _log.warning("%s: lines %s are damaged and left out", path, ", ".join(map(str, bad)))
                    bad = []
        if bad:
            _log.warning("%s: line %d was cut off while it was written, and is dropped", path, bad[0])
            file.truncate(end)
            os.fsync(file.fileno())
    return last, end
