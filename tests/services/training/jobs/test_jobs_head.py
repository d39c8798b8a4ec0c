"""services.training.jobs.head: token, record, environment; tests/pipelines/test_training_service.py has a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from services.training.jobs.head import OwnHead, Processes

MARK = "STRIDE_TEST_MARK"


def end(mark: str, grace_s: float) -> bool:
    ours = [process for process in psutil.Process().children() if _environment(process).get(MARK) == mark]
    for process in ours:
        process.terminate()
    psutil.wait_procs(ours, timeout=grace_s)
    return bool(ours)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.fixture
def head(tmp_path: Path) -> OwnHead:
    processes = Processes(variable=MARK, alive=lambda pid, _: psutil.pid_exists(pid), end=end)
    return OwnHead(tmp_path / "jobs", log=tmp_path / "logs" / "ray.log", cpus=2, gpus=0, processes=processes)


@pytest.fixture
def sleeper(head: OwnHead, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the head's place, with its record."""
    head.token()
    directory = tmp_path / "ray"
    directory.mkdir()
    code = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, MARK: "m1"}) as process:
        record = {"pid": process.pid, "started": time.time(), "port": 4711, "mark": "m1", "directory": str(directory)}
        (tmp_path / "jobs" / "ray.json").write_text(json.dumps(record))
        yield process
        process.kill()


def test_the_token_is_long_random_kept_and_its_owners_alone(head: OwnHead) -> None:
    token = head.token()
    assert len(token) == 64
    assert head.token() == token
    assert oct(head.token_file.stat().st_mode)[-3:] == "600"


def test_two_homes_have_two_tokens(head: OwnHead, tmp_path: Path) -> None:
    other = OwnHead(tmp_path / "other", log=tmp_path / "log", cpus=1, gpus=0, processes=head._processes)
    assert other.token() != head.token()


def test_a_head_that_lives_is_taken_over(head: OwnHead, sleeper: subprocess.Popen[bytes]) -> None:
    assert head.running() == "http://127.0.0.1:4711"


def test_what_is_left_of_a_head_is_ended_with_its_files(
    head: OwnHead, sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    head.end()
    assert sleeper.wait(5) is not None
    assert head.running() is None
    assert not (tmp_path / "ray").exists()
    head.end()  # again: nothing happens


def test_a_record_that_cannot_be_read_is_none(head: OwnHead, tmp_path: Path) -> None:
    head.token()
    for content in ("", "{}", '{"pid": 1, "other": 2}'):
        (tmp_path / "jobs" / "ray.json").write_text(content)
        assert head.running() is None


def test_ray_gets_the_token_by_a_file_and_no_cluster_of_the_environment(
    head: OwnHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "elsewhere")
    environment = head._environment("m2")
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(head.token_file)
    assert environment[MARK] == "m2"
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN"} & set(environment)
