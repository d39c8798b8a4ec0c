"""Somebody outside of the fit who hears of every epoch, and may say that it has been enough: a sweep's scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.training.fit import EpochLog

Listener = Callable[[int, dict[str, float]], None]
"""Called with the epoch, from 1, and its metrics, after they have been logged."""


class Enough(BaseException):
    """Raised by a listener: the fit is worth no further epoch. Its run ends KILLED and its checkpoints are removed.

    No Exception, as KeyboardInterrupt is none: nothing has failed.
    """


class Told:
    """A log that tells a listener what it has logged."""

    def __init__(self, log: EpochLog, listener: Listener) -> None:
        self._log, self._listener = log, listener

    def epoch(self, step: int, metrics: dict[str, float]) -> None:
        self._log.epoch(step, metrics)
        self._listener(step, dict(metrics))
