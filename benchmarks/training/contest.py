"""Contenders as processes that take turns: one epoch of one, then one epoch of the next, the others stopped.

So all of them meet the same minutes of the machine, and one that dies or hangs is recorded while the others go on.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

READY_S: Final = 300.0
"""Imports, data, and what a contender measures before its first epoch."""
_LOOK_S: Final = 0.1
"""Between two looks at a contender's memory."""


@dataclass(slots=True)
class Entry:
    """What one contender did in one contest."""

    name: str
    seed: int
    ready: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    done: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why it did not come to its end."""
    anonymous_bytes: int = 0
    """The most resident memory that is no file's, of what was seen while it was its turn; 0 where that is not told."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seed": self.seed,
            "ready": self.ready,
            "epochs": self.epochs,
            "done": self.done,
            "problem": self.problem,
            "anonymous_bytes": self.anonymous_bytes,
        }


class Failed(Exception):
    """A contender died, hung, or fits another network or other images."""


class Contender:
    """One process; it is stopped (SIGSTOP) whenever it is not its turn."""

    def __init__(
        self,
        entry: Entry,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        log: Path,
        directory: Path,
        epoch_s: float,
    ) -> None:
        self.entry = entry
        self._command, self._environment = list(command), dict(environment)
        self._log, self._directory, self._epoch_s = log, directory, epoch_s
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    @property
    def over(self) -> bool:
        return bool(self.entry.done) or self.entry.problem is not None

    def start(self, *, parameters: int, images: int) -> None:
        """Start it, wait until it is ready, and hold it to the network and the images that all get."""
        started = time.perf_counter()
        with self._recorded(), self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                cwd=self._directory,
                start_new_session=True,
            )
            said = self._hear("ready", READY_S)
            self.entry.ready = {**said, "seconds": time.perf_counter() - started}
            for what, wanted in (("parameters", parameters), ("images", images)):
                if said[what] != wanted:
                    raise Failed(f"it has {said[what]:,} {what}, the recipe has {wanted:,}")
            self._stop()

    def take_turn(self) -> None:
        """Let it fit an epoch, or come to its end."""
        with self._recorded():
            assert self._process is not None
            assert self._process.stdin is not None
            self._signal(signal.SIGCONT)
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()
            said = self._hear("epoch", self._epoch_s)
            if said["event"] == "done":
                self.entry.done = said
                self.end()
                return
            self.entry.epochs.append(said)
            self._stop()

    def end(self) -> None:
        """Whatever it is doing, it is over; waits for the process."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._signal(signal.SIGCONT)
            try:
                self._process.wait(timeout=20 if self.entry.done else 0)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None

    @contextmanager
    def _recorded(self) -> Iterator[None]:
        try:
            yield
        except (Failed, OSError) as error:
            broken = isinstance(error, BrokenPipeError) and self._process is not None
            self.entry.problem = self._ending() if broken else str(error)
            self.end()

    def _hear(self, expected: str, patience_s: float) -> dict[str, Any]:
        """The next line that it says: `expected`, or done."""
        assert self._process is not None
        assert self._process.stdout is not None
        source, deadline = self._process.stdout.fileno(), time.monotonic() + patience_s
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            self._look(self._process.pid)
            if left <= 0:
                raise Failed(f"it said nothing for {patience_s:.0f} s")
            if not select.select([source], [], [], min(left, _LOOK_S))[0]:
                continue
            piece = os.read(source, 65536)
            if not piece:
                raise Failed(self._ending())
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        if said["event"] not in (expected, "done"):
            raise Failed(f"it said {said['event']!r} where {expected!r} was expected")
        return said

    def _look(self, pid: int) -> None:
        """Note its anonymous memory: the peak that the kernel keeps counts the pages of mapped libraries, too."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:  # it has died, or this is not Linux
            return
        if found := re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE):
            self.entry.anonymous_bytes = max(self.entry.anonymous_bytes, int(found[1]) * 1024)

    def _ending(self) -> str:
        assert self._process is not None
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return f"it ended with {self._process.wait()} ({lines[-1][:300] if lines else 'it printed nothing'})"

    def _stop(self) -> None:
        """Stop it, and wait until it stands: on a busy machine that takes a while."""
        self._signal(signal.SIGSTOP)
        if self._process is None or not hasattr(os, "waitid"):
            return
        pid = self._process.pid
        said = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if said is not None and said.si_code == os.CLD_STOPPED:
            os.waitid(os.P_PID, pid, os.WSTOPPED)  # heard; its end stays to be told by the process itself

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError as error:
            raise Failed(self._ending()) from error


def hold(contenders: Sequence[Contender], *, parameters: int, images: int, say: Callable[[str], None]) -> None:
    """Run contenders to their ends, in turns; the order rotates, so that nobody always follows the same one."""
    try:
        for contender in contenders:
            contender.start(parameters=parameters, images=images)
            said = contender.entry.problem or f"ready after {contender.entry.ready['seconds']:.1f} s"
            say(f"  {contender.entry.name}, seed {contender.entry.seed}: {said}")
        turn = 0
        while waiting := [contender for contender in contenders if not contender.over]:
            shift = turn % len(waiting)
            for contender in waiting[shift:] + waiting[:shift]:
                contender.take_turn()
                say(f"  {contender.entry.name}, seed {contender.entry.seed}: {_state(contender.entry)}")
            turn += 1
    finally:
        for contender in contenders:
            contender.end()


def _state(entry: Entry) -> str:
    if entry.problem is not None:
        return f"FAILED, {entry.problem}"
    if entry.done:
        accuracy = entry.done.get("test_accuracy")
        return "done" if accuracy is None else f"done, test accuracy {accuracy:.4f}"
    last = entry.epochs[-1]
    return f"epoch {last['epoch']} in {last['seconds']:.1f} s"
