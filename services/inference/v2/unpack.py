"""Bodies in gzip or deflate, unpacked up to a bound."""

from __future__ import annotations

import zlib
from typing import Final

from contracts.errors import MalformedBody, TooLarge
from services.inference.errors import UnknownEncoding

_ANY_FRAME: Final = 32 + zlib.MAX_WBITS
"""zlib finds out whether the data is in gzip's frame or in its own, which is what `deflate` means."""


def check(encoding: bytes) -> bool:
    """Whether a body of this Content-Encoding is to be unpacked.

    Raises:
        UnknownEncoding: it is neither gzip nor deflate, or several of them.
    """
    name = encoding.strip().lower()
    if name in (b"", b"identity"):
        return False
    if name in (b"gzip", b"x-gzip", b"deflate"):
        return True
    shown = encoding[:40].decode("latin-1")
    raise UnknownEncoding(f"the Content-Encoding is {shown!r}; send gzip, deflate, or the body as it is.")


def unpack(data: bytes, *, most: int) -> bytes:
    """The bytes that `data` holds.

    Raises:
        TooLarge: more than `most`; no more than that is ever held.
        MalformedBody: it is not in gzip's or zlib's frame, is not whole, or something follows it.
    """
    unpacker = zlib.decompressobj(_ANY_FRAME)
    try:
        found = unpacker.decompress(data, most + 1)
    except zlib.error as error:
        raise MalformedBody("the body is not in the gzip or deflate of its Content-Encoding; pack it again.") from error
    if len(found) > most:
        raise TooLarge(f"the body unpacks to more than {most:,} bytes, the limit; send fewer images.")
    if not unpacker.eof or unpacker.unused_data:
        raise MalformedBody("the packed body ends too early, or something follows it; pack it again.")
    return found
