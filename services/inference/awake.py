"""Staying awake for a request that comes at once.

A client that asks one thing after another sends its next request soon after an answer. An event loop that goes to
sleep for so long pays for it twice: with the way to sleep and back, through the hypervisor where there is one, and with
caches that have gone cold, in which the same answer costs up to twice as much. So where requests have come that soon of
late, the loop looks for the next one for a short time before it sleeps, as the kernel's own `halt_poll_ns` does
for a virtual machine.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from typing import Final

AWAKE_S: Final = 0.00015
"""How long it stays awake. What comes later than that is cheaper to be woken for."""
_NEWEST: Final = 0.1
"""The weight of the newest request in the share of those that came in time."""


class Awake:
    """Belongs to the event loop."""

    def __init__(self, *, for_s: float = AWAKE_S) -> None:
        """Sleep until requests come soon after answers, `for_s` seconds at most."""
        self._for_s = for_s
        self._answered = 0.0
        """When the last answer was sent, on time.perf_counter's clock; 0: a request has come since."""
        self._soon = 0.0
        """The share of requests that came soon, of late."""
        self._looking = False
        self._nowhere = contextvars.Context()  # of no request

    def came(self) -> None:
        """A request has come."""
        if self._answered:
            self._soon += _NEWEST * ((time.perf_counter() - self._answered <= self._for_s) - self._soon)
            self._answered = 0.0

    def answered(self) -> None:
        """All that has come is answered."""
        self._answered = time.perf_counter()
        if self._soon > 0.5 and not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self._look, context=self._nowhere)

    def _look(self) -> None:
        """Have the loop look once more, unless a request has come or will not soon."""
        if self._answered and time.perf_counter() - self._answered < self._for_s:
            asyncio.get_running_loop().call_soon(self._look, context=self._nowhere)
        else:
            self._looking = False
