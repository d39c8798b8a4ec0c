"""The checkpoints of one fit: the last two states of it, in a directory that belongs to recipe, data and code.

    with open_checkpoints("digits", identity) as kept:     # nobody else fits the same while it is open
        resume = kept.newest()
        result = fit(..., keeper=kept, resume=resume)
        kept.finish()                                      # the directory is gone

$STRIDE_HOME/checkpoints/<identity>/
    lock                              held with flock, by the process whose id it holds
    run.json                          the MLflow run that the fit is logged in
    000003-00000120.<sha256>.safetensors   see `services.training.checkpoint_file`

A state is copied between two steps and written by a thread, after each epoch and every STRIDE_CHECKPOINT_SECONDS (60)
within one; less often where that would take more than 2% of the time. A checkpoint that cannot be written is a warning:
the fit is worth more, and goes on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

import torch

from contracts import durable
from contracts.errors import FitError
from services.training import checkpoint_file
from services.training.checkpoint_file import Snapshot
from services.training.fit_state import FitState
from services.training.helpers import beside_the_fit
from services.training.stopping import Stopping

_KEPT: Final = 2
_SHARE: Final = 0.02
"""The largest share of a fit's time that checkpoints may take."""
_RUN: Final = "run.json"

_log = logging.getLogger(__name__)


class Checkpoints:
    """Keeps the state of one fit; see `services.training.keeper` for what the loop asks of it."""

    def __init__(
        self,
        directory: Path,
        identity: str,
        *,
        every_s: float,
        share: float = _SHARE,
        stopping: Stopping | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Keep checkpoints in a directory that is there and that nobody else writes to.

        Args:
            directory: Where.
            identity: Of recipe, data and code; a checkpoint of another one is never taken.
            every_s: Seconds between two checkpoints within an epoch.
            share: Of the time that they may take, 0-1.
            stopping: Says whether a signal came; without one nothing stops the fit.
            facts: Kept in each checkpoint, beside the fit's state.
        """
        self.directory, self.identity = directory, identity
        self.facts = facts or {}
        self.written = 0
        self.failed = 0
        self.reason = ""
        """Why the last one that failed could not be written."""
        self.spent_s = 0.0
        """What they have cost the fit so far: seconds in which it waited for a copy, and CPU seconds of the thread."""
        self._failing = False
        self._unreadable: set[Path] = set()
        self._every_s, self._share = every_s, share
        self._stopping = stopping or Stopping()
        self._writer = ThreadPoolExecutor(
            max_workers=1, thread_name_prefix="stride-checkpoints", initializer=beside_the_fit
        )
        self._writing: Future[None] | None = None
        self._last = time.perf_counter()
        self._cost_s = 0.0
        for path in directory.glob(".*.staged"):  # of a process that was killed while it wrote
            path.unlink()

    # what the loop asks

    def due(self, *, epoch_done: bool = False) -> bool:
        """Whether to save now: a signal came, the epoch is done or the interval over, and it costs no more than it may.

        Costs well under a microsecond where the answer is no.
        """
        if self._stopping.number is not None:
            return True
        wait = 0.0 if epoch_done else self._every_s
        if time.perf_counter() < self._last + max(wait, self._cost_s / self._share):
            return False
        return self._writing is None or self._writing.done()

    def save(self, state: FitState) -> None:
        """Copy the state, and have it written while the fit goes on; where a signal came, written before it is raised.

        Raises:
            Terminated, KeyboardInterrupt: a signal came.
        """
        self._wait()
        started = time.perf_counter()
        snapshot, ready = self._with_facts(state.snapshot()), _event(state.plan.device)
        self._last = time.perf_counter()
        self._writing = self._writer.submit(self._write, snapshot, ready, self._last - started)
        if self._stopping.number is not None:
            self._wait()
            inside = f"epoch {state.epoch + 1}, batch {state.batch}"
            where = inside if state.batch else f"the end of epoch {state.epoch}"
            if not self._failing:
                _log.warning("stopped and saved at %s; the same command goes on from there", where)
            self._stopping.raise_noted()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The context of the loop: a signal waits until the state is whole and saved."""
        self._last = time.perf_counter()
        with self._stopping.deferred():
            yield

    @contextmanager
    def at_once(self, state: FitState) -> Iterator[None]:
        """The context of what leaves the state as it is: a signal does not wait for its end; the state is saved."""
        try:
            with self._stopping.at_once():
                yield
        except (KeyboardInterrupt, SystemExit) as error:
            self._stopping.number = self._stopping.number or _number(error)
            self.save(state)
            raise

    # what is kept

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that is whole; None where there is none.

        One that is damaged is removed with a warning. One that the disk does not give is left where it is: it may be
        read another time, and the one before it is taken meanwhile.

        Raises:
            FitError: no checkpoint is whole, and there are some that could not be read.
        """
        paths = self._paths()
        unread: OSError | None = None
        for place, path in enumerate(paths):
            try:
                return checkpoint_file.read(path, self.identity)
            except OSError as error:
                unread = unread or error
                self._unreadable.add(path)
                _log.warning("checkpoint %s cannot be read (%s) and is kept", path, error.strerror or error)
            except ValueError as error:
                last = "the fit starts anew" if unread is None else "there is no other"
                instead = "the one before it is taken" if place + 1 < len(paths) else last
                _log.warning("checkpoint %s cannot be used: %s; %s", path, error, instead)
                path.unlink(missing_ok=True)  # it would count as the newest for ever
        if unread is not None:
            raise FitError(
                f"checkpoints in {self.directory}: none could be read ({unread.strerror or unread}), one was expected "
                "to go on from; make them readable and run this again, or begin anew with --force."
            ) from unread
        return None

    @property
    def run(self) -> dict[str, str]:
        """What `keep_run` kept; empty where it did not, or where it cannot be read."""
        try:
            content = json.loads((self.directory / _RUN).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def keep_run(self, **facts: str) -> None:
        """Keep which run the fit is logged in, before there is a checkpoint."""
        staged = self.directory / f".{os.getpid()}.staged"
        try:
            with staged.open("w") as file:
                file.write(json.dumps({**self.run, **facts}))
                file.flush()
                os.fsync(file.fileno())
            staged.replace(self.directory / _RUN)
            durable.sync_directory(self.directory)
        except OSError as error:
            self._failed(error)

    def clear(self) -> None:
        """Forget everything that was kept: the fit starts anew."""
        self._wait()
        for path in (*self._paths(), self.directory / _RUN):
            path.unlink(missing_ok=True)

    def finish(self) -> None:
        """The fit has its result: remove the directory."""
        self._wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def trouble(self) -> str | None:
        """What to tell the user at the end, where checkpoints could not be written."""
        if not self.failed:
            return None
        return (
            f"{self.failed} of {self.failed + self.written} checkpoints could not be written ({self.reason}): killed, "
            f"the fit would have lost more than it must; make room under {self.directory.parent}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what is being written."""
        self._writer.shutdown(wait=True)

    def _with_facts(self, snapshot: Snapshot) -> Snapshot:
        return replace(snapshot, state={**snapshot.state, "facts": self.facts})

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()

    def _write(self, snapshot: Snapshot, ready: Any, copying_s: float) -> None:
        """In the writer's thread."""
        started = time.thread_time()
        try:
            with _side_stream(ready):
                checkpoint_file.write(self.directory, snapshot, self.identity)
            # One that could not be read takes no place: it may be newer than all that is written after it
            for path in [path for path in self._paths() if path not in self._unreadable][_KEPT:]:
                path.unlink(missing_ok=True)
            self.written += 1
            self._failing = False
        except OSError as error:
            self._failed(error)
        self._cost_s = copying_s + time.thread_time() - started  # waiting for the disk costs the fit nothing
        self.spent_s += self._cost_s

    def _failed(self, error: OSError) -> None:
        self.failed += 1
        reason = f"{error.strerror or error}"
        if not self._failing or reason != self.reason:  # once, not once an epoch
            kept = f"the last good one is {paths[0].name}" if (paths := self._paths()) else "there is none yet"
            _log.warning(
                "checkpoint in %s could not be written: %s; %s, and the fit goes on", self.directory, reason, kept
            )
        self.reason, self._failing = reason, True

    def _paths(self) -> list[Path]:
        """The checkpoints, from the newest."""
        if not self.directory.is_dir():
            return []
        found = [(place, path) for path in self.directory.iterdir() if (place := checkpoint_file.position(path))]
        return [path for _, path in sorted(found, reverse=True)]


def _number(error: BaseException) -> int:
    import signal

    return signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM


def _event(device: str) -> Any:
    return torch.cuda.current_stream().record_event() if device == "cuda" else None


@contextmanager
def _side_stream(ready: Any) -> Iterator[None]:
    """On a GPU: copies to the CPU that start when `ready` has happened, and hold up no step."""
    if ready is None:
        yield
        return
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_event(ready)
    with torch.cuda.stream(stream):
        yield
