"""Time for tests of what is timed."""

from __future__ import annotations


class Clock:
    """A clock that only `sleep` moves: what else runs on the machine decides no test."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
