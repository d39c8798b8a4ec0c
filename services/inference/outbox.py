"""A bounded queue and the thread that empties it: for what a request leaves behind and nobody waits for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from services.inference import logs

T = TypeVar("T")


class Outbox(Generic[T]):
    """`put` belongs to the event loop and never waits; all else happens in the thread.

    Args:
        name: of the thread.
        send: takes some of the items, as many as it likes; is called again as long as any wait. An error of its own is
            logged and ends nothing.
        most: items that wait at a time.
        most_bytes: of their sizes together.
        pause_s: how long items gather before they are sent.
        soon: so many items end the pause.
        begin: is called in the thread, once, before everything else.
        end: likewise, after it.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[Iterator[T]], None],
        *,
        most: int,
        most_bytes: float = float("inf"),
        pause_s: float,
        soon: int,
        begin: Callable[[], None] = lambda: None,
        end: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._send = send
        self._most = most
        self._most_bytes = most_bytes
        self._pause_s = pause_s
        self._soon = soon
        self._begin = begin
        self._end = end
        self._items: deque[tuple[T, int]] = deque()
        self._put = 0  # bytes, counted by the loop alone,
        self._taken = 0  # and by the thread alone: neither needs a lock
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._items)

    def put(self, item: T, size: int = 0) -> bool:
        """Leave an item of `size` bytes; False where there is no room for it."""
        if len(self._items) >= self._most or self._put - self._taken + size > self._most_bytes:
            return False
        self._put += size
        self._items.append((item, size))
        if len(self._items) == self._soon:
            self._wake.set()
        return True

    def close(self, within_s: float = 1.0) -> None:
        """Send what is left, as far as that goes in the time."""
        self._closing = True
        self._wake.set()
        self._thread.join(within_s)

    def _work(self) -> None:
        self._begin()
        ending = False
        while not ending:
            ending = self._closing  # before the last look, so that nothing is left behind
            if not ending:
                self._wake.wait(self._pause_s)
                self._wake.clear()
            while self._items:
                try:
                    self._send(self._waiting())
                except Exception as error:  # noqa: BLE001 - one odd item must not end the thread for good
                    logs.failure("outbox_failed", error, outbox=self._name)
        self._end()

    def _waiting(self) -> Iterator[T]:
        """The items, each of which leaves the queue when it is taken."""
        while self._items:
            item, size = self._items.popleft()
            self._taken += size
            yield item
