"""A connection, below ASGI: what has to be bounded before there is a request to refuse.

uvicorn waits for the rest of a head for as long as the client likes, keeps whatever comes until then, and waits at
its end for clients that never read their answer. BentoML passes no option for any of it, so its choice of protocol
is replaced by this one (see service.py).
"""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES: Final = 65_536
MAX_HEADERS: Final = 100
_BODY: Final = (b"content-length", b"transfer-encoding")


class Connection(HttpToolsProtocol):
    head_s: ClassVar[float] = 30.0
    """For the head of a request to arrive, and for the rest of a request that is already answered."""
    _all: ClassVar[set[Any]] = set()
    """This process' open connections: uvicorn's own set, shared by all of them."""

    @classmethod
    def abort_all(cls) -> None:
        """The grace is over: end what is still open, also for clients that do not read."""
        for connection in list(cls._all):
            connection.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        Connection._all = self.connections
        self._moved = False
        self._stray = 0
        self._problem = (HTTPStatus.BAD_REQUEST, "malformed_request", "the request does not follow HTTP/1.1.")
        # A client that says nothing at all is none either.
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(self.head_s, transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._moved = False
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()  # a request is at work, and the application keeps its times
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_s, self.transport.close)
        # Heads and trailers have no length; what does not lead to a whole head or to a piece of a body is held by the
        # parser, and copied with each piece that comes.
        self._stray = 0 if self._moved else self._stray + len(data)
        if self._stray > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._too_large(f"more than {MAX_HEAD_BYTES:,} bytes")
            self.send_400_response("")

    def on_headers_complete(self) -> None:
        self._moved = True
        if len(self.headers) > MAX_HEADERS:
            self._too_large(f"{len(self.headers)} fields where {MAX_HEADERS} are allowed")
            raise ValueError  # the parser stops at whatever is raised, and has the answer below sent
        if self.parser.should_upgrade() and any(name in _BODY for name, value in self.headers if value != b"0"):
            # The parser skips such a body, and would take what comes later of it for a request of its own.
            detail = "the request asks for another protocol and has a body; leave out the Upgrade field."
            self._problem = (HTTPStatus.BAD_REQUEST, "malformed_request", detail)
            raise ValueError
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._moved = True
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words, that name no reason
        status, code, detail = self._problem
        content = {"type": f"urn:stride:error:{code}", "title": status.phrase, "status": status, "detail": detail}
        body = json.dumps(content | {"code": code}).encode()
        head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/problem+json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()

    def _too_large(self, found: str) -> None:
        detail = f"the head of the request has {found}; send fewer or shorter header fields."
        self._problem = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", detail)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
