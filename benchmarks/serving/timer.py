"""A timer that epoll waits for: its own timeout knows milliseconds only, and requests are due in between."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import time
from typing import Final


class Timer:
    """A timer that epoll waits for: its own timeout knows milliseconds only, and requests are due in between."""

    _ABSOLUTE: Final = 1
    _CLOSE_NONBLOCK: Final = 0o2004000

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.number: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, self._CLOSE_NONBLOCK)
        if self.number < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed; the load generator needs Linux")
        self._set = -1.0

    def set(self, at: float) -> None:
        """Ring at that time of `time.perf_counter`, which is the monotonic clock on Linux."""
        if at != self._set:
            whole = int(at)
            spec = struct.pack("qqqq", 0, 0, whole, max(1, int((at - whole) * 1e9)))
            self._libc.timerfd_settime(self.number, self._ABSOLUTE, spec, None)
            self._set = at

    def clear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.number, 8)
        self._set = -1.0

    def close(self) -> None:
        os.close(self.number)
