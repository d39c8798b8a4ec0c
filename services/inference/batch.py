"""What goes into a batch, and what is told of one that has been run."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.inference import logs
from services.inference.tracing import Trace

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Reason = Literal["idle", "gathered", "full"]
"""Why a batch was run as it was: the thread was free; it took all that had gathered; or no more rows may go in."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of the graph, for the metrics. Seconds."""

    rows: int
    reason: Reason
    infer_s: float
    queue_s: tuple[float, ...]
    """How long each request of the batch waited."""


class Job:
    """One request's rows on their way through."""

    __slots__ = ("expires", "future", "images", "request_id", "since", "trace")

    def __init__(
        self,
        images: Images,
        future: asyncio.Future[Probabilities],
        since: float,
        expires: float,
        trace: Trace | None,
    ) -> None:
        self.images = images
        self.future = future
        self.since = since
        self.expires = expires
        self.trace = trace
        self.request_id = logs.request_id.get()  # the thread has no context of the request
