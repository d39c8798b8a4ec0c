"""The thread that sends a run's journal to MLflow while the run goes on; nobody waits for it before the run's end."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from services.training.journal import Journal
from services.training.journal_replay import send_next
from services.training.mlflow_client import reach, redact

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_PACE_S: Final = 1.0
"""Between two requests while a run goes on: epochs of a tenth of a second go together."""
_SILENCE_S: Final = 5.0
"""After which a server is asked for its health before it is sent anything: that tells within seconds that it is away,
where MLflow's own client tries for minutes."""
_LONGEST_S: Final = 10.0
"""Between two attempts while the server is away."""

_log = logging.getLogger(__name__)


class Sender:
    """Sends from `start` until `stop`, in the order of the journal, again and again where the server does not take it.

    sender = Sender(client, uri, journal)
    sender.start()
    journal.append(...)
    sender.wake()
    arrived = sender.drain(60)
    sender.stop()
    """

    def __init__(self, client: MlflowClient, uri: str, journal: Journal) -> None:
        self.problem: str | None = None
        """Why the last attempt failed; None where it did not."""
        self._client, self._uri, self._journal = client, uri, journal
        self._news, self._hurry, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._changed = threading.Condition()
        self._answered = time.monotonic()
        # A daemon: a server that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="stride-journal", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Say that something was appended."""
        self._news.set()

    def drain(self, timeout_s: float) -> bool:
        """Wait until all has been taken or refused; False where that has not come to pass in time."""
        self._hurry.set()
        self._news.set()
        with self._changed:
            return self._changed.wait_for(lambda: self._journal.drained, timeout_s)

    def stop(self) -> None:
        """End the thread; one that waits for a server that hangs is left behind, and may do no more than that."""
        self._ended.set()
        self._hurry.set()
        self._news.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        failures = 0
        while not self._ended.is_set():
            self._news.clear()
            if self._journal.drained:
                self._tell()
                self._news.wait()
                continue
            try:
                self._send()
                if failures:
                    _log.info("run %s: tracking at %s answers again", self._journal.run_id, redact(self._uri))
                failures, self.problem = 0, None
            except Exception as error:  # noqa: BLE001 - whatever it is, the entry is kept and tried again
                if not failures:
                    self._warn(error)
                failures += 1
                self.problem = _line(error)
            self._tell()
            if failures:
                pause = min(0.25 * 2**failures, 1.0 if self._hurry.is_set() else _LONGEST_S)
                self._ended.wait(pause)
            else:
                self._hurry.wait(_PACE_S)

    def _send(self) -> None:
        if time.monotonic() > self._answered + _SILENCE_S:
            reach(self._uri)
        send_next(self._client, self._journal)
        self._answered = time.monotonic()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _warn(self, error: Exception) -> None:
        _log.warning(
            "run %s: tracking does not take what is logged (%s); the fit goes on, and all is kept in %s until it does",
            self._journal.run_id,
            _line(error),
            self._journal.path,
        )


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]
