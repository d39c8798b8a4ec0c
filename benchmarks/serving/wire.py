"""HTTP/1.1 as the load generator speaks it: requests made once, as bytes, and just enough reading to end an answer."""

from __future__ import annotations

import re
import urllib.request
from typing import Final, NamedTuple

HOST: Final = "127.0.0.1"
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_CLOSE: Final = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_BOUNDARY: Final = "stride-benchmark-7f1d"


class Malformed(ValueError):
    """The bytes are no answer of HTTP/1.1 that says where it ends."""


class Frame(NamedTuple):
    """One whole answer at the beginning of a buffer."""

    status: int
    body: int
    """Where the head ends."""
    end: int
    close: bool
    """The server closes the connection behind it."""


def direct() -> urllib.request.OpenerDirector:
    """Asks this machine, never a proxy of the environment."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def post(path: str, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> bytes:
    """A whole request, on a connection that is kept."""
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {HOST}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def form(name: str, file: bytes) -> tuple[bytes, str]:
    """A multipart body with one PNG under that name, and its media type."""
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="image.png"\r\n'
    body = head.encode() + b"Content-Type: image/png\r\n\r\n" + file + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return body, f"multipart/form-data; boundary={_BOUNDARY}"


def frame(data: bytes) -> Frame | None:
    """The first answer in `data`; None where it is not whole yet.

    Raises:
        Malformed: it is not HTTP/1.1, or says neither its length nor that it is chunked.
    """
    head = data.find(b"\r\n\r\n")
    if head < 0:
        return None
    if not data.startswith(b"HTTP/1.1 ") or not data[9:12].isdigit():
        raise Malformed(f"the answer begins with {data[:40]!r}, not with a status line of HTTP/1.1")
    start = head + 4
    close = _CLOSE.search(data, 0, start) is not None
    if found := _LENGTH.search(data, 0, start):
        end = start + int(found[1])
        return Frame(int(data[9:12]), start, end, close) if len(data) >= end else None
    if not _CHUNKED.search(data, 0, start):
        raise Malformed("the answer says neither its length nor that it is chunked")
    chunked = _chunks_end(data, start)
    return None if chunked is None else Frame(int(data[9:12]), start, chunked, close)


def content(data: bytes) -> bytes:
    """The body of the whole answer that `data` is, its chunks put together."""
    found = frame(data)
    if found is None:
        raise Malformed("the answer is not whole")
    if _LENGTH.search(data, 0, found.body):
        return data[found.body : found.end]
    parts, at = [], found.body
    while size := int(data[at : data.index(b"\r\n", at)].split(b";")[0], 16):
        at = data.index(b"\r\n", at) + 2
        parts.append(data[at : at + size])
        at += size + 2
    return b"".join(parts)


def _chunks_end(data: bytes, at: int) -> int | None:
    """Behind the last chunk; trailers are not expected."""
    while (line := data.find(b"\r\n", at)) >= 0:
        try:
            size = int(data[at:line].split(b";")[0], 16)
        except ValueError as error:
            raise Malformed(f"a chunk begins with {data[at : at + 20]!r}, not with its size") from error
        at = line + 2 + size + 2
        if len(data) < at:
            return None
        if size == 0:
            return at
    return None
