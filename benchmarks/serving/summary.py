"""Latencies in numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Final

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
_BEYOND: Final = 2
"""A percentile is told where at least so many answers lie beyond it; with fewer it is the slowest answer by another
name."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that this share of the sorted values does not exceed (the nearest rank)."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def latencies(seconds: Iterable[float]) -> dict[str, float | None]:
    """Milliseconds at each of `PERCENTILES`, and the largest; None where there are too few answers to tell."""
    ordered = sorted(seconds)
    found: dict[str, float | None] = {}
    for name, share in PERCENTILES.items():
        enough = round(len(ordered) * (1 - share), 6) >= _BEYOND
        found[name] = 1000 * percentile(ordered, share) if enough else None
    return {**found, "max": 1000 * ordered[-1] if ordered else None}


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what was measured; None where nothing was."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def spread(values: Iterable[float | None]) -> tuple[float, float] | None:
    """The smallest and the largest of what was measured."""
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None
