"""The files of a job, $STRIDE_HOME/jobs/ID/: what is run, its log, its answer, the runs that it opened."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from contracts import durable
from services.training.jobs.job import RECIPE_FILE, Job

_ROOT: Final = Path(__file__).resolve().parents[3]
_TAIL: Final = 16_384


class JobFiles:
    """The directory of one job."""

    def __init__(self, jobs: Path, job_id: str) -> None:
        self.directory = jobs / job_id

    @property
    def log(self) -> Path:
        """What the command writes on standard error, attempt after attempt."""
        return self.directory / "log"

    def prepare(self, job: Job) -> str:
        """Write what the next attempt needs; the shell command that begins it."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        recipe = self.directory / "recipe.yaml"
        self._write(recipe, job.work.document)
        command = [str(recipe) if argument == RECIPE_FILE else argument for argument in job.work.command]
        content = {
            "command": command,
            "directory": str(Path.cwd()),  # what a relative data.path begins at, as for a command that is typed
            "attempt": job.attempt,
            # Ray allows one thread to who asks for no core; the fit is to choose by itself then.
            "unset": ["OMP_NUM_THREADS"] if job.share.cpus < 1 and "OMP_NUM_THREADS" not in os.environ else [],
        }
        self._write(self.directory / "launch.json", json.dumps(content))
        # Ray runs it in a shell. What a user sent is in the files alone, and `exec` leaves no shell between.
        launch = [sys.executable, "-m", "services.training.jobs.launch", str(self.directory)]
        return f"cd {shlex.quote(str(_ROOT))} && exec {shlex.join(launch)}"

    def answer(self) -> dict[str, Any] | None:
        """What the command wrote on standard output; None where that is no JSON object."""
        try:
            content = json.loads((self.directory / "answer.json").read_bytes())
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def runs(self) -> tuple[str, ...]:
        """The MLflow runs that the command opened, and the one that it answers with."""
        try:
            opened = (self.directory / "runs").read_text().split()
        except OSError:
            opened = []
        answered = (self.answer() or {}).get("run_id")
        return tuple(dict.fromkeys([*opened, *([answered] if isinstance(answered, str) else [])]))

    def error(self) -> str | None:
        """The sentence that the last attempt ended with; None where it wrote none."""
        for line in self._last_lines():
            if line.startswith("--- attempt "):
                return None
            if line.startswith("error: "):
                return line.removeprefix("error: ")
        return None

    def note(self, text: str) -> None:
        """Add a line of our own to the log."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self.log.open("a") as file:
            file.write(f"--- {text}\n")

    def interrupt(self, submission: str) -> None:
        """Note that an attempt is stopped with the service, before it is: one that is then killed leaves it behind."""
        self.note("stopped with the service; it goes on at the next start")
        self._write(self.directory / "interrupted", submission)

    def interrupted(self, submission: str) -> bool:
        """Whether it was a service's end that stopped an attempt."""
        try:
            return (self.directory / "interrupted").read_text() == submission
        except OSError:
            return False

    def _last_lines(self) -> Iterator[str]:
        """The lines of the log's end, last one first."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - _TAIL))
                text = file.read().decode(errors="replace")
        except OSError:
            return
        yield from reversed(text.splitlines())

    @staticmethod
    def _write(path: Path, content: str) -> None:
        durable.write(path, content.encode())
