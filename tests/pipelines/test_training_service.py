"""The training service whole: its own process, a real Ray head, real fits, and what kills them.

The tests of the service run in their order on one Ray head, since a head takes 10 s to start; each says what it needs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from mlflow.tracking import MlflowClient

from contracts.errors import RecipeError
from pipelines import owned_processes, recipe_files

TINY = {"model.blocks.1.filters": 4, "model.head.units": [8]}
ENDLESS = {**TINY, "fit.epochs": 100_000}


@dataclass
class Running:
    """A service of one home, started and killed as often as a test likes."""

    home: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    known: dict[str, str] = field(default_factory=dict)
    """Ids of jobs that one test leaves to the next."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("STRIDE_", "MLFLOW_", "RAY_"))}
        environment = {**kept, "STRIDE_HOME": str(self.home), "STRIDE_JOBS_GRACE_SECONDS": "15"}
        with (self.home / "service.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.training_service", "--port", str(self.port)],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.wait(lambda: self.get("/readyz").status_code == 200, "ready")

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, trust_env=False, timeout=30)

    def post(self, headers: dict[str, str] | None = None, **content: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/jobs", json=content, headers=headers, trust_env=False, timeout=30)

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(f"/v1/jobs/{job_id}").json()
        return found

    def log(self, job_id: str) -> str:
        return self.get(f"/v1/jobs/{job_id}/logs").text

    def ray(self) -> dict[str, Any]:
        """The record of its Ray head."""
        found: dict[str, Any] = json.loads((self.home / "jobs" / "ray.json").read_text())
        return found

    def wait(self, reached: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if reached():
                    return
            except httpx.TransportError:
                pass  # not listening yet
            assert self.process is not None
            ended = self.process.poll()
            tail = "\n".join((self.home / "service.log").read_text().splitlines()[-20:])
            assert ended is None, f"the service ended with {ended} before it was {what}:\n{tail}"
            assert time.monotonic() < deadline, f"not {what} within {timeout_s} s:\n{tail}"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Running]:
    import socket

    home = tmp_path_factory.mktemp("training-service")
    shutil.copy(migrated_database, home / "mlflow.db")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    running = Running(home=home, port=port)
    mark = None
    try:
        running.start()
        mark = running.ray()["mark"]
        yield running
    finally:
        if running.process is not None and running.process.poll() is None:
            running.process.terminate()
            running.process.wait(60)
        record = home / "jobs" / "ray.json"
        for each in {mark, running.ray()["mark"] if record.exists() else None} - {None}:
            owned_processes.end(str(each), grace_s=2)


def test_a_ray_without_the_token_answers_nobody(service: Running) -> None:
    address = f"http://127.0.0.1:{service.ray()['port']}"
    command = {"entrypoint": "touch pwned"}
    assert httpx.post(f"{address}/api/jobs/", json=command, trust_env=False).status_code == 401
    wrong = {"Authorization": "Bearer wrong"}
    assert httpx.post(f"{address}/api/jobs/", json=command, headers=wrong, trust_env=False).status_code == 403
    token = service.home / "jobs" / "ray-token"
    assert oct(token.stat().st_mode)[-3:] == "600"


def test_fifty_posts_at_once_with_one_key_give_one_job(service: Running) -> None:
    def post(_: int) -> httpx.Response:
        changes = {**TINY, "fit.epochs": 2}
        return service.post({"Idempotency-Key": "night-1"}, kind="train", recipe="digits", set=changes)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(service.get("/v1/jobs").json()["jobs"]) == 1
    service.known["fit"] = answers[0].json()["id"]


def test_a_followed_log_shows_the_fit_and_ends_with_it(service: Running) -> None:
    """Of the job that the test before has posted."""
    job_id = service.known["fit"]
    arrived: list[tuple[float, str]] = []
    with httpx.stream("GET", f"{service.url}/v1/jobs/{job_id}/logs?follow=1", trust_env=False, timeout=120) as answer:
        arrived.extend((time.monotonic(), line) for line in answer.iter_lines())
    lines = [line for _, line in arrived]
    assert lines[0].startswith("--- attempt 1 begins at ")
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["1/2", "2/2"]
    job = service.job(job_id)
    assert (job["state"], job["error"], job["attempts"]) == ("succeeded", None, 1)
    assert job["result"]["epochs"] == 2
    assert job["runs"] == [job["result"]["run_id"]]
    run = MlflowClient(f"sqlite:///{service.home / 'mlflow.db'}").get_run(job["runs"][0])
    assert run.info.status == "FINISHED"


def test_a_recipe_that_is_not_known_is_refused_as_on_the_command_line(service: Running) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe_files.load("digitz")
    answer = service.post(kind="train", recipe="digitz")
    assert (answer.status_code, answer.json()["detail"]) == (422, refused.value.message)
    broken = service.post(kind="train", recipe="digits", set={"optimizer.nam": "adam"})
    assert "key 'optimizer.nam' is not known; did you mean 'optimizer.name'?" in broken.json()["detail"]
    assert service.post(kind="train").json()["detail"] == "job: key 'recipe' is missing; add it."
    assert len(service.get("/v1/jobs").json()["jobs"]) == 1


def test_a_job_that_fails_says_why_in_the_commands_sentence(service: Running) -> None:
    answer = service.post(kind="train", recipe="folder", set={"data.path": "/nowhere"})
    job_id = answer.json()["id"]
    service.wait(lambda: service.job(job_id)["state"] not in ("queued", "running"), "failed")
    job = service.job(job_id)
    assert job["state"] == "failed"
    assert job["error"].startswith("data.path '/nowhere' does not exist")
    assert f"error: {job['error']}" in service.log(job_id)


def test_one_job_at_a_time_and_a_killed_service_finds_the_one_that_runs(service: Running) -> None:
    first = service.post(kind="train", recipe="digits", set=ENDLESS).json()["id"]
    second = service.post(kind="train", recipe="digits", set=TINY).json()["id"]
    service.wait(lambda: "epoch 3/" in service.log(first), "fitting")
    service.wait(lambda: len(service.job(first)["runs"]) == 1, "known to MLflow")
    service.wait(lambda: any((service.home / "checkpoints").rglob("*.safetensors")), "saved")
    ray = service.ray()
    assert service.process is not None
    service.process.kill()
    service.process.wait()
    service.start()
    job = service.job(first)
    assert (job["state"], job["attempts"], service.ray()) == ("running", 1, ray)
    assert service.job(second)["state"] == "queued"
    httpx.delete(f"{service.url}/v1/jobs/{second}", trust_env=False)
    assert service.job(second)["state"] == "cancelled"
    service.known["endless"] = first


def test_a_job_goes_on_from_its_checkpoint_after_service_and_ray_were_killed(service: Running) -> None:
    """As when their container dies; of the job that the test before has begun."""
    job_id, ray = service.known["endless"], service.ray()
    (run,) = service.job(job_id)["runs"]
    assert service.process is not None
    service.process.kill()
    service.process.wait()
    for process in psutil.Process(ray["pid"]).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself since
            process.kill()
    psutil.Process(ray["pid"]).kill()
    reached = epochs(service.home / "jobs" / job_id / "log")[-1]
    service.start()
    service.wait(lambda: service.job(job_id)["attempts"] == 2, "begun again")
    service.wait(lambda: epochs_of(service.log(job_id).partition("--- attempt 2")[2]) != [], "going on")
    first_again = epochs_of(service.log(job_id).partition("--- attempt 2")[2])[0]
    assert 2 <= first_again <= reached + 1  # not from the beginning
    assert service.job(job_id)["runs"] in ([run], [run, run])
    assert set(service.job(job_id)["runs"]) == {run}


def test_a_cancelled_job_ends_its_processes_and_says_so_any_number_of_times(service: Running) -> None:
    job_id = service.known["endless"]
    answers = [httpx.delete(f"{service.url}/v1/jobs/{job_id}", trust_env=False) for _ in range(2)]
    assert {answer.status_code for answer in answers} <= {200, 202}
    service.wait(lambda: service.job(job_id)["state"] == "cancelled", "cancelled")
    assert httpx.delete(f"{service.url}/v1/jobs/{job_id}", trust_env=False).status_code == 200
    assert fits_of(service) == []


def test_sigterm_lets_the_fit_save_ends_ray_and_exits_0(service: Running) -> None:
    job_id = service.post(kind="train", recipe="digits", set={**ENDLESS, "fit.seed": 7}).json()["id"]
    service.wait(lambda: "epoch 2/" in service.log(job_id), "fitting")
    mark, directory = service.ray()["mark"], Path(service.ray()["directory"])
    assert service.process is not None
    began = time.monotonic()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(60) == 0
    assert time.monotonic() - began < 15 + 15
    assert owned_processes.members(mark) == []
    assert not directory.exists()
    log = (service.home / "jobs" / job_id / "log").read_text()
    assert "stopped with the service; it goes on at the next start" in log
    import sqlite3

    with sqlite3.connect(service.home / "jobs" / "jobs.db") as connection:
        row = connection.execute("SELECT state, submission FROM jobs WHERE id = ?", (job_id,)).fetchone()
    connection.close()
    assert row == ("queued", None)


def epochs(log: Path) -> list[int]:
    return epochs_of(log.read_text())


def epochs_of(text: str) -> list[int]:
    """The epochs that a log tells of."""
    return [int(line.split()[1].partition("/")[0]) for line in text.splitlines() if line.startswith("epoch ")]


def fits_of(service: Running) -> list[psutil.Process]:
    """The processes of jobs that live."""
    return [
        process
        for process in owned_processes.members(service.ray()["mark"])
        if "pipelines.cli" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    ]
