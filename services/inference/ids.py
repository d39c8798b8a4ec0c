"""Request ids: the client's X-Request-ID where it is harmless, else one that is made up."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Final

HEADER: Final = b"x-request-id"
_HARMLESS: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The id of a request with these ASGI headers."""
    for key, value in headers:
        if key == HEADER and _HARMLESS.fullmatch(value):
            return value
    return made_up()


def made_up() -> bytes:
    """16 hexadecimal digits; no secret, so the system need not be asked for them."""
    return b"%016x" % random.getrandbits(64)
