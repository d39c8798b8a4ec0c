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
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from contracts.errors import Overloaded
from services.inference import ids, tracing
from services.inference.metrics import Metrics
from services.inference.problems import problem
from services.inference.v2.routes import INFER

Fields = Iterable[tuple[bytes, bytes]]

_PREDICTION: Final = rb"/v1/predict|/predict|/v1/models/[^/?\s]+/predict|(/v2/models/[^?\s]+/infer)"
_TARGET: Final = re.compile(rb"(?:%b)(?:\?.*)?" % _PREDICTION, re.DOTALL)
# A whole head that leaves no doubt. What is unusual is left to the parser.
_HEAD: Final = re.compile(
    rb"POST (?:%b)(?:\?[!-~]*)? HTTP/1\.1\r\n(?:[!#$%%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)+\r\n" % _PREDICTION
)
_TELLING: Final = re.compile(
    rb"\r\n(content-length|x-request-id|connection|transfer-encoding|expect|upgrade|traceparent):[ \t]*([^\r\n]*)",
    re.IGNORECASE,
)
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
        self._dates: list[tuple[bytes, bytes]] | None = None
        self._date = b""

    def of_piece(self, data: bytes, server: list[tuple[bytes, bytes]]) -> bytes | None:
        """The refusal of what came on a connection that was at rest; None where it has to be looked at more closely.

        Args:
            data: refused is one prediction, whole, with nothing behind it and nothing unusual in its head.
            server: the fields that the server adds to every answer.
        """
        if (head := _HEAD.match(data)) is None:
            return None
        length: bytes | None = None
        request_id = b""
        for name, value in _TELLING.findall(data, 0, head.end()):
            field = name.lower()
            if field == b"content-length" and length is None:
                length = value.rstrip()
            elif field == ids.HEADER:
                request_id = value.rstrip()
            elif field != b"connection" or value.rstrip().lower() != b"keep-alive":
                return None
        if length is None or not length.isdigit() or len(length) > 9 or head.end() + int(length) != len(data):
            return None
        given = ((ids.HEADER, request_id),) if request_id else ()
        return self._write(bare=head[1] is not None, request_id=ids.of(given), server=server, more=b"")

    def of_head(self, url: bytes, fields: Fields, server: list[tuple[bytes, bytes]], *, close: bool) -> bytes | None:
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

    def _write(self, *, bare: bool, request_id: bytes, server: list[tuple[bytes, bytes]], more: bytes) -> bytes:
        if not self._uncounted:  # one count for all that a round of the loop refuses
            asyncio.get_running_loop().call_soon(self._count)
        self._uncounted[INFER if bare else "predict"] += 1
        if self._dates is not server:  # the server makes a new list whenever the date has changed
            self._dates, self._date = server, b"".join(b"%b: %b\r\n" % field for field in server)
        head, body = self._bare if bare else self._problem
        return b"%b%bx-request-id: %b\r\n%b\r\n%b" % (head, self._date, request_id, more, body)

    def _count(self) -> None:
        for route, times in self._uncounted.items():
            self._metrics.refused(route, self._error.status, self._error.code, self._error.reason, times)
        self._uncounted.clear()

    def _written(self, bare: bool) -> tuple[bytes, bytes]:
        status, body, headers = problem(self._error, bare=bare)
        headers.append((b"content-length", b"%d" % len(body)))
        lines = b"".join(b"%b: %b\r\n" % field for field in headers)
        return b"HTTP/1.1 %d %b\r\n%b" % (status, HTTPStatus(status).phrase.encode(), lines), body
