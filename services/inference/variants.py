"""Champion or challenger: which of the two answers a request.

A client chooses with `X-Stride-Variant: champion` or `challenger`; where no challenger is served the champion answers,
so a canary that is stopped fails nobody. Without the header the request's id decides: its hash is a number from 0 to
100, and below the canary's percentage the challenger answers. A request that is sent again with the same `X-Request-ID`
is therefore answered by the same version; one without an id is drawn anew each time.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Literal

from contracts.errors import RequestError

Variant = Literal["champion", "challenger"]

HEADER: Final = b"x-stride-variant"


@dataclass(frozen=True, slots=True)
class Choice:
    """Made once a request, so that both looks at the models agree."""

    wish: Variant | None
    """What the client asks for."""
    draw: float
    """From 0 up to, not including, 100."""

    def falls_on_challenger(self, percent: float) -> bool:
        return self.wish == "challenger" if self.wish is not None else self.draw < percent


def choose(headers: Iterable[tuple[bytes, bytes]]) -> Choice:
    """The choice of a request with these ASGI headers.

    Raises:
        RequestError: X-Stride-Variant is neither champion nor challenger.
    """
    wish: Variant | None = None
    request_id = b""
    for key, value in headers:
        if key == b"x-request-id":
            request_id = value
        elif key == HEADER:
            wish = _wish(value)
    return Choice(wish, draw(request_id) if request_id else random.random() * 100)


def draw(request_id: bytes) -> float:
    """A number from 0 up to 100, even over any ids (a plain checksum would not be, over ids that count up)."""
    return int.from_bytes(blake2b(request_id, digest_size=6).digest()) * 100 / 2**48


def _wish(value: bytes) -> Variant:
    name = value.strip().lower()
    if name == b"champion":
        return "champion"
    if name == b"challenger":
        return "challenger"
    shown = value[:40].decode("latin-1")
    raise RequestError(f"the header X-Stride-Variant is {shown!r}; give champion or challenger, or leave it out.")
