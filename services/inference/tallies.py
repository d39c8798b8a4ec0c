"""The counts of the hot path: kept in plain numbers, and handed to Prometheus' library some times a second.

Each `inc` of prometheus_client takes a lock, asks for the process' id and writes to a mapped file, and each `observe`
does so twice and looks through the buckets one after the other: for a tiny network's prediction, which counts a dozen
things, that was a tenth of its cost. But for `Direct`, all of this belongs to the event loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np


class _Kept(Protocol):
    def publish(self) -> None: ...


K = TypeVar("K", bound=_Kept)


class Tally:
    """One series of a counter."""

    __slots__ = ("_new", "_series")

    def __init__(self, series: Any) -> None:
        self._series = series
        self._new = 0.0

    def inc(self, amount: float = 1) -> None:
        self._new += amount

    def publish(self) -> None:
        if self._new:
            self._series.inc(self._new)
            self._new = 0.0


class Level:
    """One series of a gauge that goes up and down."""

    __slots__ = ("_now", "_series", "_told")

    def __init__(self, series: Any) -> None:
        self._series = series
        self._now = self._told = 0

    def inc(self) -> None:
        self._now += 1

    def dec(self) -> None:
        self._now -= 1

    def publish(self) -> None:
        if self._now != self._told:
            self._told = self._now
            self._series.set(self._now)


class Observations:
    """One series of a histogram."""

    __slots__ = ("_bounds", "_buckets", "_new", "_sum", "observe")

    def __init__(self, series: Any) -> None:
        # The library has no public way to take several observations together.
        self._bounds = np.asarray(series._upper_bounds)  # noqa: SLF001
        self._buckets: list[Any] = series._buckets  # noqa: SLF001
        self._sum: Any = series._sum  # noqa: SLF001
        self._new: list[float] = []
        self.observe: Callable[[float], None] = self._new.append

    def publish(self) -> None:
        if not self._new:
            return
        found = np.asarray(self._new)
        self._new.clear()
        counts = np.bincount(np.searchsorted(self._bounds, found), minlength=len(self._bounds))
        for bucket in np.flatnonzero(counts).tolist():
            self._buckets[bucket].inc(int(counts[bucket]))
        self._sum.inc(float(found.sum()))


class Family(Generic[K]):
    """A metric by its labels, whose sets are closed, so each is looked up once: the library takes its time."""

    def __init__(self, metric: Any, kind: Callable[[Any], K]) -> None:
        self._series: list[K] = []

        @functools.cache
        def labels(*values: str) -> K:
            series = kind(metric.labels(*values))
            self._series.append(series)
            return series

        self.labels = labels

    def publish(self) -> None:
        for series in self._series:
            series.publish()


class Direct:
    """As `Family`, of the library's own series: for what any thread counts, and seldom."""

    def __init__(self, metric: Any) -> None:
        self.labels: Callable[..., Any] = functools.cache(metric.labels)
