"""When requests are due, in seconds from the start: what an open loop sends by, whether or not answers come."""

from __future__ import annotations

import random


def poisson(rate: float, seconds: float, *, seed: int) -> list[float]:
    """Independent arrivals, `rate` a second on average."""
    chance = random.Random(seed)
    due, at = [], chance.expovariate(rate)
    while at < seconds:
        due.append(at)
        at += chance.expovariate(rate)
    return due


def bursts(size: int, every: float, seconds: float) -> list[float]:
    """`size` requests at once, every so many seconds."""
    return [number * every for number in range(max(1, int(seconds / every))) for _ in range(size)]
