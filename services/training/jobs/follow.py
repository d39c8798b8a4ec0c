"""A log piece by piece, as it stands or as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

_PIECE: Final = 65_536
_LOOK_S: Final = 0.25


async def pieces(path: Path, *, start: int, more: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
    """The bytes of a file from `start` on; at its end, wait for further ones as long as `more()` says so.

    A file that is not there yet is an empty one.
    """
    position = start
    while True:
        going_on = await more()  # asked before the look: what was written before the end is still seen
        piece = _read(path, position)
        position += len(piece)
        if piece:
            yield piece
        elif going_on:
            await asyncio.sleep(_LOOK_S)
        else:
            return


def _read(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(_PIECE)
    except FileNotFoundError:
        return b""
