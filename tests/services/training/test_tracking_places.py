"""Where runs are kept: data bases made at once, servers that are away, homes that cannot be used."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contracts.errors import RegistryError
from contracts.recipe import Recipe
from services.training import tracking
from services.training.mlflow_client import connect


def test_a_deleted_experiment_is_named_with_the_way_out(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    client = connect()
    client.delete_experiment(client.create_experiment("tiny"))
    with (
        pytest.raises(RegistryError, match=r"'tiny'.*was deleted.*experiments restore"),
        tracking.open_run(tiny_recipe, tags={}),
    ):
        pass


def test_two_processes_may_create_the_same_data_base_and_experiment_at_once(home: Path, tmp_path: Path) -> None:
    recipe = '{"data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},'
    recipe += '"model": {"kind": "convnet", "blocks": [{"filters": 4}]}}'
    script = tmp_path / "fit.py"
    script.write_text(
        "import json, sys\n"
        "from contracts.recipe import parse\n"
        "from services.training.tracking import open_run\n"
        f"recipe = parse(json.loads({recipe!r}), name='tiny')\n"
        "import mlflow  # the slow part, before the start\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "with open_run(recipe, tags={}) as run:\n"
        "    for epoch in range(1, 31):\n"
        "        run.epoch(epoch, {'train/loss': 1 / epoch})\n"
        "print(run.run_id, run.experiment_id)\n"
    )
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "STRIDE_HOME": str(home)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=environment,
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert err == ""  # MLflow's migrations say nothing
        answers.append(out.split())
    assert answers[0][1] == answers[1][1]
    assert {tracking.get_run(run_id).info.status for run_id, _ in answers} == {"FINISHED"}
    assert len(connect().get_metric_history(answers[0][0], "train/loss")) == 30


def test_a_server_that_is_away_is_told_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe, free_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port}")
    start = time.monotonic()
    with (
        pytest.raises(RegistryError, match=f"127.0.0.1:{free_port}: no answer.*start it") as caught,
        tracking.open_run(tiny_recipe, tags={}),
    ):
        pass
    assert time.monotonic() - start < 10
    assert "secret" not in caught.value.message


def test_a_server_that_takes_connections_and_never_answers_is_told_within_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(RegistryError, match="no answer"):
            tracking.find_finished(tiny_recipe, data_fingerprint="x", code_version="x")
        assert time.monotonic() - start < 12


def test_the_users_own_retry_settings_are_kept(monkeypatch: pytest.MonkeyPatch, embedded_tracking: str) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    connect()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"


def test_a_home_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STRIDE_HOME", str(tmp_path / "file"))
    with (
        pytest.raises(RegistryError, match=r"file/mlflow\.db: it cannot be opened.*set STRIDE_HOME"),
        tracking.open_run(tiny_recipe, tags={}),
    ):
        pass


def test_a_file_that_is_no_data_base_is_named(tiny_recipe: Recipe, home: Path) -> None:
    home.mkdir()
    (home / "mlflow.db").write_bytes(b"no data base at all" * 100)
    with pytest.raises(RegistryError, match=r"mlflow\.db: it cannot be opened"):
        tracking.find_finished(tiny_recipe, data_fingerprint="x", code_version="x")


def test_artifacts_work_in_a_home_with_unusual_characters(
    monkeypatch: pytest.MonkeyPatch, embedded_tracking: str, home: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    odd = tmp_path / "my home #1 50%"
    odd.mkdir()
    (home / "mlflow.db").rename(odd / "mlflow.db")
    monkeypatch.setenv("STRIDE_HOME", str(odd))
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.file("a.txt", "x")
    (written,) = (odd / "artifacts").rglob("a.txt")
    assert written.parent.parent.name == run.run_id
    assert written.read_text() == "x"
