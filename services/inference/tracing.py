"""Traces: the caller's W3C trace context in, four spans a prediction out, where a collector is named (see otlp.py).

Of a request that brings a valid `traceparent`, the trace id goes into the log and into the answer (`traceresponse`).
A malformed one is ignored, as the specification asks (https://www.w3.org/TR/trace-context/). The spans, the request and
in it `decode`, `queue` and `infer`, are made in a thread of their own from the few numbers that a request leaves
behind: the SDK's span objects would be the most expensive part of a small network's prediction after the network.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from typing import Final

from services.inference import logs
from services.inference.outbox import Outbox

_TRACEPARENT: Final = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_QUEUE: Final = 2048
"""Requests that wait for the exporter; beyond it the newest are dropped and counted."""
_BATCH: Final = 256
_PAUSE_S: Final = 1.0
"""How long spans gather before they are sent."""
Raw = Iterable[tuple[bytes, bytes]]


class Trace:
    """Where one request stands in its trace, and what its spans will say. The ids are lower-case hexadecimal."""

    __slots__ = (
        *("decoded", "decoding", "inferred", "inferring", "submitted"),
        *("code", "model", "rows", "status", "version"),
        *("parent_id", "sampled", "span_id", "trace_id"),
    )

    def __init__(self, trace_id: bytes, parent_id: bytes, *, sampled: bool) -> None:
        self.trace_id = trace_id
        self.parent_id = parent_id
        """Of the caller's span; empty where the trace begins here."""
        self.span_id = os.urandom(8).hex().encode()
        self.sampled = sampled
        # On time.perf_counter's clock; 0 where the request did not come so far.
        self.decoding = self.decoded = self.submitted = self.inferring = self.inferred = 0.0
        self.status = 0
        self.code = ""
        """Of the error; empty where it was answered."""
        self.model = self.version = ""
        self.rows = 0

    def header(self) -> tuple[bytes, bytes]:
        """`traceresponse`: which span answered, and whether it was recorded."""
        return b"traceresponse", b"00-%b-%b-%b" % (self.trace_id, self.span_id, b"01" if self.sampled else b"00")


@dataclass(frozen=True, slots=True)
class Ended:
    """What a request leaves behind for its spans. Times are on time.perf_counter's clock."""

    trace: Trace
    method: str
    path: str
    started: float
    ended: float


current: ContextVar[Trace | None] = ContextVar("trace", default=None)
"""The trace of the request that is being answered; None where there is none."""


def parent(headers: Raw) -> tuple[bytes, bytes, bool] | None:
    """The caller's trace id, span id and sampling decision; None without exactly one valid `traceparent`."""
    values = [value for name, value in headers if name == b"traceparent"]
    if len(values) != 1 or (found := _TRACEPARENT.fullmatch(values[0].strip(b" \t"))) is None:
        return None
    version, trace_id, parent_id, flags, more = found.groups()
    # Version 00 ends here, later ones may bring more; ff is none, and neither is an id of zeros.
    if version == b"ff" or (version == b"00" and more is not None):
        return None
    if not trace_id.strip(b"0") or not parent_id.strip(b"0"):
        return None
    return trace_id, parent_id, bool(int(flags, 16) & 1)


def joined(headers: Raw) -> Trace | None:
    """The caller's trace where nothing is exported: for the log and the answer alone."""
    found = parent(headers)
    return None if found is None else Trace(found[0], found[1], sampled=False)


def join(trace: Trace | None) -> None:
    """Answer the present request as a part of `trace`, or of none."""
    current.set(trace)
    logs.trace_id.set(trace.trace_id.decode() if trace is not None else "")


class Tracer:
    """Samples traces and hands over what ended, in batches, in a thread of its own.

    Args:
        export: sends the spans of some requests; raises whatever it likes when they do not arrive.
        ratio: the part of the traces that is sampled.
        follow: a caller's decision counts instead.
        dropped: is told how many requests' spans were lost.
    """

    def __init__(
        self,
        export: Callable[[list[Ended]], None],
        *,
        ratio: float = 1.0,
        follow: bool = True,
        dropped: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._export = export
        self._ratio = ratio
        self._follow = follow
        self._dropped = dropped
        self._failing = False
        self._outbox: Outbox[Ended] = Outbox("traces", self._send, most=_QUEUE, pause_s=_PAUSE_S, soon=_BATCH)

    def begin(self, headers: Raw) -> Trace:
        """The caller's trace, or a new one."""
        found = parent(headers)
        if found is not None and self._follow:
            return Trace(found[0], found[1], sampled=found[2])
        sampled = self._ratio >= 1 or random.random() < self._ratio
        trace_id, parent_id = found[:2] if found is not None else (os.urandom(16).hex().encode(), b"")
        return Trace(trace_id, parent_id, sampled=sampled)

    def end(self, trace: Trace, method: str, path: str, started: float) -> None:
        """Hand over an answered request. Never waits."""
        if not trace.sampled:
            return
        if not self._outbox.put(Ended(trace, method, path, started, time.perf_counter())):
            self._dropped(1)

    def close(self, within_s: float = 1.0) -> None:
        """Send what is left, as far as that goes in the time."""
        self._outbox.close(within_s)

    def _send(self, waiting: Iterator[Ended]) -> None:
        ended = list(islice(waiting, _BATCH))
        try:
            self._export(ended)
        except Exception as error:  # noqa: BLE001 - a collector that is away must cost nothing but its spans
            self._dropped(len(ended))
            if not self._failing:
                logs.warning("traces_not_sent", reason=str(error)[:300])
            self._failing = True
        else:
            if self._failing:
                logs.info("traces_sent_again")
            self._failing = False
