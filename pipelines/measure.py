"""How fast calls are beside each other: interleaved, so that what else the machine does meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

ROUNDS: Final = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Of one call."""

    cpu_s: float
    """The median over the rounds; of all threads of this process, and of no other program."""
    wall_s: float
    """In the quickest round: what else the machine does can only add to it."""


def interleaved(calls: Mapping[str, Callable[[], object]], *, seconds: float) -> dict[str, Timing]:
    """Time every call, in rounds over all of them, for about so many seconds together.

    Each call is made at least twice before (the first ones reserve memory) and once a round, however long that takes.
    """
    slice_s = seconds / (ROUNDS + 1) / max(1, len(calls))
    repeats: dict[str, int] = {}
    for name, call in calls.items():
        call()
        started = time.perf_counter()
        call()
        repeats[name] = max(1, int(slice_s / max(time.perf_counter() - started, 1e-6)))
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            count = repeats[name]
            wall_from, cpu_from = time.perf_counter(), time.process_time()
            for _ in range(count):
                call()
            cpu[name].append((time.process_time() - cpu_from) / count)
            wall[name].append((time.perf_counter() - wall_from) / count)
    return {name: Timing(cpu_s=statistics.median(cpu[name]), wall_s=min(wall[name])) for name in calls}
