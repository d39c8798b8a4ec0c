"""`stride train --workers 2`, told to end in the midst of it, and gone on with by torchrun."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 8
RECIPE = f"""
model_name: shared
data: {{dataset: digits, image: {{height: 8, width: 8, channels: 1}}}}
model: {{kind: convnet, blocks: [{{filters: 8, padding: same, norm: batch}}], head: {{units: [16], dropout: 0.2}}}}
optimizer: {{name: adam, lr: 3.0e-3}}
fit: {{epochs: {EPOCHS}, batch_size: 64, precision: fp32}}
"""


@pytest.mark.timeout(600)
def test_two_workers_save_on_sigterm_and_torchrun_goes_on_in_the_same_run(
    tmp_path: Path, migrated_database: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(migrated_database, home / "mlflow.db")
    recipe = home / "shared.yaml"
    recipe.write_text(RECIPE)
    environment = {
        **os.environ,
        "STRIDE_HOME": str(home),
        "STRIDE_DEVICE": "cpu",
        "STRIDE_CHECKPOINT_SECONDS": "0.05",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "pipelines.cli", "train", str(recipe), "--workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 143, said
    assert any("stopped and saved at" in line for line in said), said

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "pipelines.cli", "train", str(recipe), "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)  # the first worker alone has answered
    assert (result["workers"], result["resumed"], result["epochs"]) == (2, 1, EPOCHS)
    assert done.stderr.count("goes on after epoch") == 1
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("shared")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (result["run_id"], "FINISHED")
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "validation/loss")]
    assert steps == list(range(1, EPOCHS + 1))
