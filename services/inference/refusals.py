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
from services.inference.piece import PREDICTION, Fields, Piece, ServerLines
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
        self._problem, self._bare = (self._written(bare) for bare in (False, True))
        self._uncounted: Counter[str] = Counter()
        self._lines = ServerLines()

    def of_piece(self, piece: Piece, server: Fields) -> bytes:
        """The refusal of what came whole, on a connection that was at rest.

        Args:
            server: the fields that the server adds to every answer.
        """
        return self._write(bare=piece.v2, request_id=piece.request_id, server=server, more=b"")

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
        return self._write(bare=target[1] is not None, request_id=ids.of(fields), server=server, more=more)

    def count(self, status: HTTPStatus, code: str) -> None:
        """Count what was refused before it was a request."""
        self._metrics.refused("other", status, code)

    def _write(self, *, bare: bool, request_id: bytes, server: Fields, more: bytes) -> bytes:
        if not self._uncounted:  # one count for all that a round of the loop refuses
            asyncio.get_running_loop().call_soon(self._count)
        self._uncounted[INFER if bare else "predict"] += 1
        head, body = self._bare if bare else self._problem
        return b"%b%bx-request-id: %b\r\n%b\r\n%b" % (head, self._lines(server), request_id, more, body)

    def _count(self) -> None:
        for route, times in self._uncounted.items():
            self._metrics.refused(route, self._error.status, self._error.code, self._error.reason, times)
        self._uncounted.clear()

    def _written(self, bare: bool) -> tuple[bytes, bytes]:
        status, body, headers = problem(self._error, bare=bare)
        headers.append((b"content-length", b"%d" % len(body)))
        lines = b"".join(b"%b: %b\r\n" % field for field in headers)
        return b"HTTP/1.1 %d %b\r\n%b" % (status, HTTPStatus(status).phrase.encode(), lines), body
