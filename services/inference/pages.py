"""The two pages, as they lie beside this module."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from services.inference.problems import Headers

_POLICY: Final = (
    b"default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
    b"img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)


async def page(name: str) -> tuple[bytes, bytes, Headers]:
    """A file of HTML: body, media type, further headers."""
    body = await asyncio.to_thread((Path(__file__).parent / name).read_bytes)
    return (
        body,
        b"text/html; charset=utf-8",
        [(b"content-security-policy", _POLICY), (b"x-content-type-options", b"nosniff")],
    )
