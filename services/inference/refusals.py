"""The refusal of a prediction while the event loop is behind: found out from its head, and written beforehand.

Where networks are tiny, it is the loop that cannot do more, and it spends its time on the refused as well. With c
seconds for an answer and r for a refusal, twice the capacity leaves (c - 2r) / (c - r) of the goodput: to keep 90 %,
r must be less than an eleventh of c. So these requests get no task, no scope and no look at their body, and where a
request came in one piece, as small ones do, not even a parser. Nor are they asked for a key or given a span: who lacks
a key is told so once there is time.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from http import HTTPStatus
from typing import Final

from contracts.errors import Overloaded
from services.inference import ids, tracing
from services.inference.metrics import Metrics
from services.inference.piece import PREDICTION, Fields, Piece, lines_of
from services.inference.problems import problem
from services.inference.v2.routes import INFER

_TARGET: Final = re.compile(rb"%b(?:\?.*)?" % PREDICTION, re.DOTALL)
_CLOSE: Final = b"connection: close\r\n"


class Refusals:
    """The refusals of one process. Belongs to the event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._error = Overloaded(
            "more predictions are asked for than can be begun in time; try again in 1 s.", reason="not_begun"
        )
        self._heads, self._bodies = zip(*(self._written(bare) for bare in (False, True)), strict=True)
        """Of a problem, and of an error below /v2."""
        self._uncounted: Counter[str] = Counter()
        self._server: Fields | None = None
        self._begun: tuple[bytes, ...] = ()
        """The heads with the server's fields, up to the request's id."""

    def of_piece(self, piece: Piece, server: Fields) -> bytes:
        """The refusal of what came whole, on a connection that was at rest.

        Args:
            server: the fields that the server adds to every answer.
        """
        return self._write(piece.head.v2, piece.request_id, server)

    def of_head(self, url: bytes, fields: Fields, server: Fields, *, close: bool) -> bytes | None:
        """The refusal of a POST whose head has been parsed; None where it asks for no prediction.

        Args:
            close: the connection ends with it.
        """
        if (target := _TARGET.fullmatch(url)) is None:
            return None
        more = _CLOSE if close else b""
        if (trace := tracing.joined(fields)) is not None:
            more += b"%b: %b\r\n" % trace.header()
        return self._write(target[1] is not None, ids.of(fields), server, more)

    def count(self, status: HTTPStatus, code: str) -> None:
        """Count what was refused before it was a request."""
        self._metrics.refused("other", status, code)

    def _write(self, bare: bool, request_id: bytes, server: Fields, more: bytes = b"") -> bytes:
        if server is not self._server:
            self._renew(server)
        if not self._uncounted:  # one count for all that a round of the loop refuses
            asyncio.get_running_loop().call_soon(self._count)
        self._uncounted[INFER if bare else "predict"] += 1
        return b"%b%b\r\n%b%b" % (self._begun[bare], request_id, more, self._bodies[bare])

    def _renew(self, server: Fields) -> None:
        """Write what is the same in all refusals of a second: the server makes a new list when its date changes."""
        lines = lines_of(server)
        self._server, self._begun = server, tuple(head + lines + b"x-request-id: " for head in self._heads)

    def _count(self) -> None:
        for route, times in self._uncounted.items():
            self._metrics.refused(route, self._error.status, self._error.code, self._error.reason, times)
        self._uncounted.clear()

    def _written(self, bare: bool) -> tuple[bytes, bytes]:
        status, body, headers = problem(self._error, bare=bare)
        headers.append((b"content-length", b"%d" % len(body)))
        return b"HTTP/1.1 %d %b\r\n%b" % (status, HTTPStatus(status).phrase.encode(), lines_of(headers)), b"\r\n" + body
