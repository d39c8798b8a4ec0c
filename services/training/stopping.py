"""SIGTERM and Ctrl-C during a fit: taken at once, or where the fit says that its state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, Self

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Terminated(SystemExit):
    """SIGTERM came: the process ends with 143 (128 + 15), as a shell counts, unless somebody catches it."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)

    def __str__(self) -> str:
        return "told to end by SIGTERM"


class Stopping:
    """While it is entered, in the main thread, SIGTERM raises Terminated and Ctrl-C KeyboardInterrupt.

    with Stopping() as stopping:
        load()                        # a signal is raised at once
        with stopping.deferred():
            step()                    # here it is only noted, in `stopping.number`
            with stopping.at_once():
                validate()            # here it is raised at once again

    A second signal is always raised at once: who asks twice does not want to wait.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came while it was deferred, and waits to be raised."""
        self._deferring = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other one set handlers
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # a job in the background is told to ignore Ctrl-C
                    self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python, and cannot be
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before.clear()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A signal is noted; raised at the end of the block at the latest, unless that raises by itself."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.raise_noted()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred`: signals are raised at once, one that was noted before too."""
        before, self._deferring = self._deferring, False
        try:
            self.raise_noted()
            yield
        finally:
            self._deferring = before

    def raise_noted(self) -> None:
        """Raise what was noted; returns where there is nothing.

        Raises:
            Terminated, KeyboardInterrupt: see the class.
        """
        if self.number is not None:
            raise _error(self.number)

    def _take(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what a handler is called with
        if self._deferring and self.number is None:
            self.number = number
            return
        raise _error(number)


def _error(number: int) -> BaseException:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
