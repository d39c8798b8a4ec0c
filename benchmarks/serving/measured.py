"""What a run of load came to: every request and what became of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from benchmarks.serving import summary

LOST: Final = 0
"""Stands for the status of a request that got no answer: its connection ended, or patience did."""


class Answer(NamedTuple):
    """One request and what became of it; times on `time.perf_counter`'s clock."""

    due: float
    done: float
    status: int
    tag: bytes | None
    """What the pattern found in the answer: which version gave it."""
    number: int
    """Which of the requests it was."""
    data: bytes | None
    """The whole answer, where they are kept."""


@dataclass(kw_only=True)
class Measured:
    """One run of load."""

    seconds: float
    """Of the schedule, without what came after it."""
    started: float
    answers: list[Answer] = field(default_factory=list)
    client_cpu_s: float = 0.0
    lateness: list[float] = field(default_factory=list)
    """How late requests left that a connection was free for: the generator's own fault. Of an open loop, seconds."""
    resent: int = 0
    """Requests sent again because the server had closed the idle connection that they went out on."""

    def good(self, within_s: float | None = None) -> int:
        """Answers with status 200 that came before the schedule ended, or within that time from when they were due."""
        ends = self.started + self.seconds
        return sum(
            answer.status == 200 and (answer.done <= ends if within_s is None else answer.done - answer.due <= within_s)
            for answer in self.answers
        )

    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    def latencies(self, *statuses: int) -> dict[str, float | None]:
        """Milliseconds, of the answers with these statuses; 200 without any."""
        wanted = statuses or (200,)
        return summary.latencies(answer.done - answer.due for answer in self.answers if answer.status in wanted)

    @property
    def client_share(self) -> float:
        """The part of its core that the generator used."""
        ends = max((answer.done for answer in self.answers), default=self.started + self.seconds)
        return self.client_cpu_s / max(ends - self.started, self.seconds)
