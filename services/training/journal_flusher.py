"""The thread that has the disk hold a run's journal while the run goes on.

It is not the one that sends: that one may hang in a request for minutes, and a server that hangs is when the disk is
all there is.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from services.training.journal import Journal

PACE_S: Final = 1.0
"""Between two flushes; what a power failure can take."""

_log = logging.getLogger(__name__)


class Flusher:
    """Flushes from `start` until `stop`, after each `wake`, once in `PACE_S` at most."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._news, self._ended = threading.Event(), threading.Event()
        # A daemon: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="stride-journal-disk", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Say that something was appended."""
        self._news.set()

    def stop(self) -> None:
        """End the thread; closing the journal flushes what is left."""
        self._ended.set()
        self._news.set()
        self._thread.join(timeout=PACE_S)

    def _run(self) -> None:
        failed = False
        while True:
            self._news.wait()
            if self._ended.is_set():
                return
            self._news.clear()
            try:
                self._journal.flush()
                failed = False
            except OSError as error:
                if not failed:
                    reason = error.strerror or error
                    _log.warning(
                        "run %s: the disk does not hold its journal yet (%s); a power failure would take what is new",
                        self._journal.run_id,
                        reason,
                    )
                failed = True
                self._news.set()  # once more
            self._ended.wait(PACE_S)
