"""A connection, below ASGI: what has to be bounded before there is a request to refuse, and refusals that are cheap.

uvicorn waits for the rest of a head for as long as the client likes, keeps whatever comes until then, and waits at
its end for clients that never read their answer. BentoML passes no option for any of it, so its choice of protocol
is replaced by this one (see service.py).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services.inference import piece as pieces
from services.inference.backlog import ROUND, Backlog
from services.inference.piece import MAX_FIELDS, Piece

if TYPE_CHECKING:
    from services.inference.door import Door
    from services.inference.fast_path import Asked, FastPath
    from services.inference.refusals import Refusals

MAX_HEAD_BYTES: Final = 65_536
_BODY: Final = (b"content-length", b"transfer-encoding")
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 16 * 1024 * 1024
"""How long, and how much, a client may go on sending of a body that has been refused before it reads that."""
_ENTRANTS: Final = 4
"""New connections let in at once for each request of a round: most of a crowd is refused, which costs little."""
_CROWD: Final = 8
"""Requests of a round from which on the loop has much to do."""
_SWEEP_S: Final = 0.25
"""Between two looks for connections whose time is over: a timer for each request would cost more."""


class Connection(HttpToolsProtocol):
    head_s: ClassVar[float] = 30.0
    """For the head of a request to arrive, and for the rest of a request that is already answered."""
    keep_s: ClassVar[float] = 75.0
    """For the next request to begin. uvicorn's 5 s are less than what balancers keep: they would send a request into a
    connection that is being closed, and tell their client of a bad gateway."""
    backlog: ClassVar[Backlog] = Backlog()
    refusals: ClassVar[Refusals | None] = None
    """None: nothing is refused here, as while the service begins and ends."""
    fast_path: ClassVar[FastPath | None] = None
    """None: every request goes the usual way, as then, or where requests are traced."""
    door: ClassVar[Door | None] = None
    """None: the process does not listen."""
    brought = False
    """It was let in with another one."""
    _all: ClassVar[set[Any]] = set()
    """This process' open connections: uvicorn's own set, shared by all of them."""
    _sweeper: ClassVar[asyncio.TimerHandle | None] = None

    @classmethod
    def abort_all(cls) -> None:
        """The grace is over: end what is still open, also for clients that do not read."""
        for connection in list(cls._all):
            connection.transport.abort()

    @classmethod
    def _sweep(cls, loop: asyncio.AbstractEventLoop) -> None:
        """End the connections whose time is over."""
        now = loop.time()
        for connection in list(cls._all):
            if connection.ends <= now:
                connection.transport.close()
        cls._sweeper = loop.call_later(_SWEEP_S, cls._sweep, loop) if cls._all else None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        super().connection_made(transport)
        if self.door is not None and not self.brought and (rush := self.backlog.rush) >= _CROWD:
            self.door.let_in(_ENTRANTS * rush, self._another)
        Connection._all = self.connections
        self._moved = False
        self._stray = 0
        self._problem = (HTTPStatus.BAD_REQUEST, "malformed_request", "the request does not follow HTTP/1.1.")
        self._within = False
        """A message has begun and is not whole."""
        self._refused = False
        """It has been answered from its head, so the rest of it is passed over."""
        self._last = False
        """And the connection ends with it."""
        self._resting = False
        """All that came has been answered."""
        self._gentle = _Gentle(self)
        self._lingering = -1
        """Bytes that may still come, and are passed over, on a connection that has ended otherwise; -1: it has not."""
        self._asked: Asked | None = None
        """What is on the fast path; the parser has seen nothing of it."""
        # A client that says nothing at all is none either.
        self.ends = self.loop.time() + self.head_s
        """On the loop's clock: when the connection is closed unless something happens; inf while a request is at work,
        whose times the application keeps."""
        if Connection._sweeper is None:
            Connection._sweep(self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ends = inf
        if (asked := self._asked) is not None:
            asked.asker = self._asked = None
        self._gentle.close = self.transport.close  # or the two would hold on to each other
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._lingering >= 0:
            self._lingering -= len(data)
            if self._lingering < 0:
                self.transport.close()
            return
        if self._asked is not None:  # something comes behind it: both go the usual way, in their order
            self.take_back()
        elif not self._within and self._at_rest() and (piece := pieces.read(data)) is not None and self._take(piece):
            return
        self._parse(data)

    def answer(self, data: bytes) -> None:
        """Send the answer to what is on the fast path."""
        self._asked = None
        self.server_state.total_requests += 1
        self.transport.write(data)
        self._rest()

    def take_back(self) -> None:
        """Have what is on the fast path go the usual way."""
        if (asked := self._asked) is not None:
            asked.asker = self._asked = None
            self._parse(asked.piece.data)

    def shutdown(self) -> None:
        self.take_back()  # or uvicorn would take the connection for one at rest
        super().shutdown()

    def end(self) -> None:
        """Close the connection behind its last answer.

        What has not been read of a body would have the kernel reset the connection, and many a client would then not
        see the answer. So our side alone is closed at first, and the client has some time to do the same.
        """
        if not self._within or self.transport.is_closing() or not self.transport.can_write_eof():
            self.transport.close()
            return
        self._lingering = _LINGER_BYTES
        self.ends = self.loop.time() + _LINGER_S
        self.transport.write_eof()
        self.flow.resume_reading()
        if self._answering():  # the parser has met an error in its body
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _another(self) -> Connection:
        other = Connection(self.config, self.server_state, self.app_state, self.loop)
        other.brought = True
        return other

    def _parse(self, data: bytes) -> None:
        self._moved = False
        if self._resting:
            self._resting, self.ends = False, inf
        super().data_received(data)
        if self._lingering >= 0:
            return
        if self._answering():
            self.ends = inf
        elif self.ends == inf:
            self.ends = self.loop.time() + self.head_s
        # Heads and trailers have no length; what does not lead to a whole head or to a piece of a body is held by the
        # parser, and copied with each piece that comes.
        self._stray = 0 if self._moved else self._stray + len(data)
        if self._stray > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._too_large(f"more than {MAX_HEAD_BYTES:,} bytes")
            self.send_400_response("")

    def on_message_begin(self) -> None:
        self._within = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._moved = True
        if len(self.headers) > MAX_FIELDS:
            self._too_large(f"{len(self.headers)} fields where {MAX_FIELDS} are allowed")
            raise ValueError  # the parser stops at whatever is raised, and has the answer below sent
        if self.parser.should_upgrade() and any(name in _BODY for name, value in self.headers if value != b"0"):
            # The parser skips such a body, and would take what comes later of it for a request of its own.
            detail = "the request asks for another protocol and has a body; leave out the Upgrade field."
            self._problem = (HTTPStatus.BAD_REQUEST, "malformed_request", detail)
            raise ValueError
        if not (self.backlog.full and self._refuse_head()):
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._moved = True
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._within = False
        if not self._refused:
            super().on_message_complete()
            return None if self._answering() else self._rest()  # its answer may have gone before its end came
        self._refused = False
        return self.transport.close() if self._last else self._rest()

    def on_response_complete(self) -> None:
        """As uvicorn's, but for its timer, of which it makes one for every answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._lingering >= 0:
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._rest()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words, that name no reason
        status, code, detail = self._problem
        content = {"type": f"urn:stride:error:{code}", "title": status.phrase, "status": status, "detail": detail}
        body = json.dumps(content | {"code": code}).encode()
        head = f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: application/problem+json\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.end()
        if self.refusals is not None:
            self.refusals.count(status, code)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        cycle.transport = self._gentle
        self.backlog.take(partial(super()._start_asgi_task, cycle, app))

    def _answering(self) -> bool:
        """Whether a request is at work here."""
        return self.cycle is not None and not self.cycle.response_complete

    def _at_rest(self) -> bool:
        """Whether all that came before has been answered and sent, so that an answer may be written past uvicorn."""
        return not self._answering() and not self.flow.write_paused and not self.transport.is_closing()

    def _take(self, piece: Piece) -> bool:
        """Refuse a whole prediction, or take it on the fast path; whether either could be done."""
        server = self.server_state.default_headers
        if self.backlog.full:
            if self.refusals is None:
                return False
            self.transport.write(self.refusals.of_piece(piece, server))
            self._rest()
            return True
        together = ROUND if self.backlog.behind else 1
        if self.fast_path is None or (asked := self.fast_path.take(piece, self, together)) is None:
            return False
        self._asked, self._resting, self.ends = asked, False, inf
        self.backlog.take(partial(self.fast_path.begin, asked, server))
        return True

    def _refuse_head(self) -> bool:
        """Refuse the prediction whose head has been parsed, likewise; what follows of it is passed over."""
        if self.refusals is None or not self._at_rest():
            return False
        if self.parser.get_method() != b"POST" or self.parser.should_upgrade():
            return False
        # A client that waits for its "100 Continue" need not send the body after a refusal.
        keep = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        keep = keep and not self.expect_100_continue
        answer = self.refusals.of_head(self.url, self.headers, self.server_state.default_headers, close=not keep)
        if answer is None:
            return False
        self._refused, self._last = True, not keep
        self.transport.write(answer)
        # Ended with a body on its way, the connection is reset, and many a client would not see its answer.
        if self.expect_100_continue:
            self.transport.close()
        return True

    def _rest(self) -> None:
        """The next request may take its time; the rest of one that is answered already may not."""
        self._resting = not self._within
        self.ends = self.loop.time() + (self.head_s if self._within else self.keep_s)

    def _too_large(self, found: str) -> None:
        detail = f"the head of the request has {found}; send fewer or shorter header fields."
        self._problem = (HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", detail)


class _Gentle:
    """The transport as uvicorn's answers see it: they write to it, and close it behind the last one."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close: Callable[[], None] = connection.end
