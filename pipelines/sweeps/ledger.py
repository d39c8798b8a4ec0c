"""Which trials a sweep has and what came of them: one line of JSON an event, appended and flushed to the disk.

    {"trial": 3, "event": "begun", "values": {"optimizer.lr": 0.003}, "drawn": {"optimizer.lr": 0.0030000001}}
    {"trial": 3, "event": "epoch", "epoch": 1, "value": 0.91}
    {"trial": 3, "event": "ended", "state": "finished", "value": 0.97, "run_id": "…"}

The process that runs the sweep is the only one that writes. Killed at any moment, or cut off from power, it loses
nothing: a trial that is begun and not ended goes on, and a line that was cut off is left out. A line that is whole and
not as it was written is a damaged disk, or a hand: what it said is not guessed.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from contracts import durable
from contracts.errors import AlreadyFitting, FitError

State = Literal["running", "finished", "stopped", "failed"]
Mode = Literal["max", "min"]


@dataclass(slots=True)
class Trial:
    """One fit of a sweep."""

    number: int
    values: dict[str, Any]
    """By key of the recipe."""
    drawn: dict[str, Any]
    """The same as Optuna has drawn them."""
    epochs: dict[int, float] = field(default_factory=dict)
    """The metric after each epoch, from 1."""
    state: State = "running"
    """`stopped`: ended early, since others were better; `failed`: its loss was not finite any more."""
    value: float | None = None
    """Of a finished trial: the metric of the weights that were kept."""
    run_id: str | None = None
    problem: str | None = None

    def best(self, mode: Mode) -> float | None:
        """What the trial came to: its value, or the best of its epochs; None where no epoch was done."""
        if self.value is not None:
            return self.value
        return (max if mode == "max" else min)(self.epochs.values(), default=None)

    @property
    def over(self) -> bool:
        """Whether it counts as one of those that were asked for; one that failed does: its values are to blame."""
        return self.state != "running"


class Ledger:
    """The trials of one sweep."""

    def __init__(self, path: Path) -> None:
        """Read what there is; the directory is made.

        Raises:
            FitError: a line is damaged.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.trials: dict[int, Trial] = {}
        whole = 0
        content = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break
            try:
                self._take(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise damaged(path, f"its line {number} is none that a sweep writes") from error
            whole += len(line)
        if whole < len(content):  # cut off: what is appended must not continue it
            os.truncate(path, whole)

    def begin(self, values: Mapping[str, Any], drawn: Mapping[str, Any]) -> Trial:
        """A new trial, with the next number, from 0."""
        number = len(self.trials)
        self._append({"trial": number, "event": "begun", "values": dict(values), "drawn": dict(drawn)})
        return self.trials[number]

    def epoch(self, number: int, epoch: int, value: float) -> None:
        self._append({"trial": number, "event": "epoch", "epoch": epoch, "value": value})

    def end(
        self,
        number: int,
        state: State,
        *,
        value: float | None = None,
        run_id: str | None = None,
        problem: str | None = None,
    ) -> None:
        ended = {"state": state, "value": value, "run_id": run_id, "problem": problem}
        self._append({"trial": number, "event": "ended", **ended})

    def over(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.over]

    def open(self) -> list[Trial]:
        """Begun and not ended: somebody was killed."""
        return [trial for trial in self.trials.values() if not trial.over]

    def _append(self, event: dict[str, Any]) -> None:
        new = not self.path.exists()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if new:
            durable.sync_directory(self.path.parent)
        self._take(event)

    def _take(self, event: dict[str, Any]) -> None:
        number = event["trial"]
        match event["event"]:
            case "begun":
                self.trials[number] = Trial(number, event["values"], event["drawn"])
            case "epoch":
                self.trials[number].epochs[event["epoch"]] = event["value"]
            case "ended":
                trial = self.trials[number]
                trial.state, trial.value = event["state"], event["value"]
                trial.run_id, trial.problem = event["run_id"], event["problem"]


def damaged(path: Path, how: str) -> FitError:
    """A file of a sweep that cannot be gone on from."""
    advice = "bring it back from a backup, or give --force, which begins the sweep anew; its runs stay in MLflow"
    return FitError(f"sweep file '{path}' is damaged ({how}), a whole one was expected; {advice}.")


@contextmanager
def alone(directory: Path, what: str) -> Iterator[None]:
    """Held while this process runs the sweep.

    Raises:
        AlreadyFitting: another one does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise AlreadyFitting(
                f"{what}: another process runs the same sweep; wait for it, or end it and run this again, "
                "which goes on."
            ) from error
        yield
