"""`stride train` in forks of a process that has imported everything, so that a kill costs a fit's time alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient

# Everything that has a state: batch normalisation, dropout, random images, mixed labels, averaged weights, a learning
# rate that follows a metric, and patience.
RECIPE = """
model_name: hardy
data: {dataset: digits, image: {height: 8, width: 8, channels: 1}}
model:
  kind: convnet
  blocks:
    - {filters: 8, padding: same, norm: batch, dropout: 0.1}
    - {filters: 8, padding: same}
  head: {units: [32], dropout: 0.2}
augmentation: {shift: 0.1, rotation: 8, mixup: 0.2}
optimizer: {name: adam, lr: 3.0e-3}
schedule: {name: plateau, patience: 2, min_delta: 0.01}
fit: {epochs: 24, batch_size: 48, precision: PRECISION, ema: 0.99, early_stopping: {patience: 23}}
"""

# Forks a process for each line of arguments it reads; says its id, and how it ended.
FORKS = """
import json, os, signal, sys
import matplotlib.pyplot, mlflow.tracking, sklearn.datasets, sklearn.metrics, torch
import services.training.report, services.training.train
from pipelines.cli.main import main
from services.training.code_version import code_version
code_version()  # of what has been imported
signal.signal(signal.SIGINT, signal.default_int_handler)  # as on a terminal, also where the tests run in the background
print("ready", flush=True)
for line in sys.stdin:
    given = json.loads(line)
    child = os.fork()
    if child == 0:
        os.environ.update(given["environment"])
        for descriptor, path in ((1, given["output"]), (2, given["errors"])):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        try:
            main(given["arguments"])
        except SystemExit as error:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.code or 0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass
class Fit:
    """A process that fits."""

    forks: subprocess.Popen[str]
    pid: int
    handle: int
    """A file descriptor of the process: its id may be another one's by the time that a signal is sent."""
    output: Path
    errors: Path
    started: float
    code: int | None = None

    def ended(self) -> int:
        """Wait for its end; the exit code, or the signal that killed it as a negative number."""
        assert self.forks.stdout is not None
        self.code = int(self.forks.stdout.readline())
        os.close(self.handle)
        return self.code

    def wait_for(self, text: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while text not in self.said():
            assert time.monotonic() < end, self.said()
            time.sleep(0.002)

    def said(self) -> str:
        return self.errors.read_text() if self.errors.exists() else ""

    def stop(self, number: int) -> int:
        self.send(number)
        return self.ended()

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it may have ended by itself
            signal.pidfd_send_signal(self.handle, number)


class Machine:
    """A STRIDE_HOME, and `stride train` in it."""

    def __init__(self, forks: subprocess.Popen[str], home: Path, database: Path, precision: str) -> None:
        self.home, self._forks = home, forks
        self.fitting: Fit | None = None
        home.mkdir(parents=True)
        shutil.copy(database, home / "mlflow.db")
        self.recipe = home / "hardy.yaml"
        self.recipe.write_text(RECIPE.replace("PRECISION", precision))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "STRIDE_HOME": str(self.home),
            "STRIDE_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
            "STRIDE_CHECKPOINT_SECONDS": "0.05",
        }

    def train(self, *arguments: str) -> Fit:
        given = {
            "arguments": ["train", str(self.recipe), "--json", *arguments],
            "environment": self.environment,
            "output": str(self.home / "output"),
            "errors": str(self.home / "errors"),
        }
        (self.home / "errors").unlink(missing_ok=True)
        assert self._forks.stdin is not None
        assert self._forks.stdout is not None
        self._forks.stdin.write(json.dumps(given) + "\n")
        self._forks.stdin.flush()
        pid = int(self._forks.stdout.readline())
        handle = os.pidfd_open(pid)
        self.fitting = Fit(self._forks, pid, handle, self.home / "output", self.home / "errors", time.monotonic())
        return self.fitting

    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.home / 'mlflow.db'}")

    def runs(self) -> list[Any]:
        experiment = self.client().get_experiment_by_name("hardy")
        return [] if experiment is None else list(self.client().search_runs([experiment.experiment_id]))

    def checkpoints(self) -> list[Path]:
        """From the oldest."""
        return sorted((self.home / "checkpoints").glob("*/*.safetensors"))

    def result(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.home / "output").read_text())
        return content

    def weights(self, run_id: str) -> bytes:
        return (self.home / "artifacts" / "hardy" / run_id / "artifacts" / "weights.safetensors").read_bytes()

    def course(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """What was logged of each epoch, without what a clock says."""
        keys = ("train/loss", "train/accuracy", "validation/loss", "validation/accuracy", "lr")
        return {
            key: [(point.step, point.value) for point in self.client().get_metric_history(run_id, key)] for key in keys
        }
