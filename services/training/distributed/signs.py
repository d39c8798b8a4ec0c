"""What workers tell each other outside of the fit, by the store that their group meets at: a problem, and the end.

A collective call says nothing of why a worker is not there, and one on a GPU may wait for it for ever. So every worker
but the first looks at the store beside its work: where the first one has left, it ends, whatever it waits for.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from types import FrameType
from typing import Any, Final

_POLL_S: Final = 0.2
_LEAVE_S: Final = 2.0
"""How long a worker may take to end by itself, where it is over."""
_DEAF_S: Final = 20.0
"""How long a worker that was told to end waits for the first one to do so, who has a state to save."""
_OVER: Final = "over"
_PROBLEM: Final = "problem"


class Signs:
    """The signs of one worker and to it; `start` is called in the main thread."""

    def __init__(self, store: Any, *, first: bool) -> None:
        """Use a connection of its own: another thread waits at it.

        Args:
            store: torch's, of this start of the group alone.
            first: Whether this is the first worker.
        """
        self._store, self._first = store, first
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._told_to_end: float | None = None
        self._before: dict[int, Any] = {}

    def start(self) -> None:
        """Watch from now on; signals are the first worker's to hear, and the others end after it.

        Not where the fit is a thread of somebody else's process, as it is with Ray Train: that one watches by itself.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        if not self._first:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._take)
        threading.Thread(target=self._watch, name="stride-signs", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._left.set()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    def over(self) -> bool:
        """Whether the first worker has left, or whoever holds the store, which is not without it."""
        try:
            return self._has(_OVER)
        except RuntimeError:
            return True

    def wait_until_over(self, seconds: float) -> bool:
        """Wait for the first worker to leave, for so long at the most; whether it has."""
        end = time.monotonic() + seconds
        while not (found := self.over()) and time.monotonic() < end:
            time.sleep(_POLL_S / 4)
        return found

    def tell_over(self) -> None:
        """The first worker leaves."""
        self._set(_OVER, "1")

    def tell_problem(self, rank: int, message: str) -> None:
        """A worker cannot go on."""
        self._set(_PROBLEM, json.dumps({"rank": rank, "message": message}))

    def problem(self) -> tuple[int, str] | None:
        """The rank of a worker that cannot go on, and its sentence."""
        try:
            if not self._has(_PROBLEM):
                return None
            with self._lock:
                content = json.loads(self._store.get(_PROBLEM))
        except RuntimeError:  # whoever holds the store is gone, and nobody has said why
            return None
        return content["rank"], content["message"]

    def _has(self, key: str) -> bool:
        with self._lock:
            return bool(self._store.check([key]))

    def _set(self, key: str, value: str) -> None:
        try:
            with self._lock:
                self._store.set(key, value)
        except RuntimeError:  # nobody is left to be told
            return

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what a handler is called with
        self._told_to_end = self._told_to_end or time.monotonic()

    def _watch(self) -> None:
        while not self._left.wait(_POLL_S):
            try:
                with self._lock:
                    over = not self._first and self._store.check([_OVER])
                    if self._first:
                        self._store.check([_PROBLEM])  # whether it still answers
            except RuntimeError:
                self._orphaned()
                return
            if over or (self._told_to_end is not None and time.monotonic() > self._told_to_end + _DEAF_S):
                if not self._left.wait(_LEAVE_S):
                    os._exit(0 if over else 128 + signal.SIGTERM)
                return

    def _orphaned(self) -> None:
        """Whoever started the group, and holds the store, was killed: the first worker ends as on SIGTERM."""
        if self._first:
            os.kill(os.getpid(), signal.SIGTERM)
        elif not self._left.wait(_DEAF_S):
            os._exit(128 + signal.SIGTERM)
