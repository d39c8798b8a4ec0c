"""The requests that have come in and wait for the event loop, and how many of them may.

Where networks are tiny, it is the loop that cannot do more. It would begin all that has come in at once, and with more
than it can answer its rounds would grow without end: in each of them more comes in than in the one before, and every
answer, every refusal and every look at its health waits for the whole of one. So a round begins a bounded number, the
others wait for their turn, and what comes while as many wait as can be begun in good time is to be refused.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable
from typing import Final

ROUND: Final = 32
"""Requests begun in one round: a batch of so many has all that a larger one saves, and its activations stay in a core's
cache; and the fewer there are, the sooner the others are refused and new connections are let in."""
WAIT_S: Final = 0.1
"""How long a request may wait for its turn."""
LEAST: Final = 64
MOST: Final = 512
"""Requests that may wait, however slow or quick they are."""
_NEWEST: Final = 0.2
"""The weight of the newest round in the mean seconds a request."""


class Backlog:
    """Belongs to the event loop; there is one in a process."""

    def __init__(self) -> None:
        self.most = LEAST
        self._waiting: deque[Callable[[], None]] = deque()
        self._begun = 0
        """In this round."""
        self._last = 0
        """In the round before,"""
        self._ended = 0.0
        """which ended then."""
        self._since = 0.0
        """When this round began, on time.perf_counter's clock; 0 where nothing waited then."""
        self._request_s = WAIT_S / LEAST
        self._nowhere = contextvars.Context()  # a request must not begin in the context of another

    @property
    def full(self) -> bool:
        """Whether as many wait as may."""
        return len(self._waiting) >= self.most

    @property
    def behind(self) -> bool:
        """Whether what comes now begins in a later round, which will be a whole one."""
        return self._begun >= ROUND or bool(self._waiting)

    @property
    def rush(self) -> int:
        """Requests begun in a round of late; 0 where little has come."""
        return self._last if time.perf_counter() - self._ended < WAIT_S else 0

    def take(self, begin: Callable[[], None]) -> None:
        """Begin a request, in this round or when its turn comes."""
        if self.behind:
            self._waiting.append(begin)
            return
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next_round, context=self._nowhere)
        self._begun += 1
        begin()

    def _next_round(self) -> None:
        now = time.perf_counter()
        if self._since:  # the loop has had enough to do, so this is what it needs for each, with all that it does
            self._request_s += _NEWEST * ((now - self._since) / self._begun - self._request_s)
            self.most = min(MOST, max(LEAST, int(WAIT_S / self._request_s)))
        self._since = now if self._waiting else 0.0
        self._last, self._ended, self._begun = self._begun, now, 0
        while self._waiting and self._begun < ROUND:
            self._begun += 1
            self._waiting.popleft()()
        if self._begun:
            asyncio.get_running_loop().call_soon(self._next_round, context=self._nowhere)
