"""A compose project as the tests use it: brought up, asked, killed, looked into."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
BASE_IMAGE: Final = "python:3.11-slim-bookworm"
PORTS: Final = ("STRIDE_PORT", "STRIDE_MLFLOW_PORT", "STRIDE_JOBS_PORT", "STRIDE_PROMETHEUS_PORT", "STRIDE_EDGE_PORT")


def docker(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


class Stack:
    """A compose project in a directory."""

    def __init__(self, directory: Path, project: str, ports: Mapping[str, int], **settings: str) -> None:
        self.directory, self.project, self.ports = directory, project, ports
        self.files: tuple[str, ...] = ("docker-compose.yml",)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("STRIDE_", "COMPOSE_"))}
        numbers = {name: str(port) for name, port in ports.items()}
        self.environment = {**own, **numbers, **settings, "COMPOSE_PROJECT_NAME": project}

    def compose(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        files = [word for file in self.files for word in ("-f", file)]
        return docker("compose", *files, *arguments, check=check, cwd=self.directory, env=self.environment, **options)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the repository, such as make, on this stack."""
        done = subprocess.run(
            command, cwd=self.directory, env=self.environment, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def up(self, *services: str) -> None:
        done = self.compose("up", "--detach", "--wait", *services, check=False)
        if done.returncode:
            seen = self.compose("ps", "--all", check=False).stdout
            logs = self.compose("logs", "--tail", "60", check=False).stdout
            raise AssertionError(f"up: exit {done.returncode}\n{done.stderr[-3000:]}\n{seen}\n{logs[-12000:]}")

    def url(self, port: str = "STRIDE_PORT") -> str:
        return f"http://127.0.0.1:{self.ports[port]}"

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine says of every container of the project, ended ones too, by service."""
        ids = docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}").stdout
        found = json.loads(docker("inspect", *ids.split()).stdout) if ids.split() else []
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in found}

    def kill(self, service: str) -> None:
        """SIGKILL to the container's first process, from outside: `docker kill` would mean to end it for good."""
        pid = self.containers()[service]["State"]["Pid"]
        code = f"import os; os.kill({pid}, 9)"
        docker("run", "--rm", "--pid=host", "--cap-drop=ALL", "--cap-add=KILL", BASE_IMAGE, "python3", "-c", code)

    def wait_healthy(self, service: str, *, timeout_s: float = 150) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            state = self.containers()[service]["State"]
            if state["Running"] and state["Health"]["Status"] == "healthy":
                return
            if time.monotonic() > deadline:
                logs = self.compose("logs", "--tail", "60", service, check=False).stdout
                raise AssertionError(f"{service} is not healthy after {timeout_s:g} s: {state}\n{logs}")
            time.sleep(0.5)

    def get(self, path: str, *, port: str = "STRIDE_PORT") -> Any:
        return json.loads(ask(f"{self.url(port)}{path}"))

    def runs(self) -> list[dict[str, Any]]:
        """Every run that MLflow holds, through its API."""
        experiments = self.get("/api/2.0/mlflow/experiments/search?max_results=100", port="STRIDE_MLFLOW_PORT")
        body = {"experiment_ids": [each["experiment_id"] for each in experiments["experiments"]], "max_results": 500}
        found = json.loads(
            ask(f"{self.url('STRIDE_MLFLOW_PORT')}/api/2.0/mlflow/runs/search", json.dumps(body).encode())
        )
        runs: list[dict[str, Any]] = found.get("runs", [])
        for run in runs:  # the data base gives them in any order
            run["data"] = {name: sorted(items, key=str) for name, items in run["data"].items()}
        return sorted(runs, key=lambda run: str(run["info"]["run_id"]))

    @contextmanager
    def load(self, image: bytes, *, threads: int = 4) -> Iterator[dict[str, Any]]:
        """Predictions asked all the while, from a container beside inference; the counts are there afterwards.

        Not through the published port: what stands there takes connections for a service that has ended.
        """
        script = (ROOT / "tests/compose/load_client.py").read_text()
        beside = ("--rm", "--interactive", "--network", f"{self.project}_stack")
        asked = ("inference", "3000", "/v1/predict", str(threads))
        command = ["docker", "run", *beside, BASE_IMAGE, "python3", "-c", script, *asked]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        process.stdin.write(base64.b64encode(image).decode() + "\n")
        process.stdin.flush()
        time.sleep(3)
        counts: dict[str, Any] = {}
        try:
            yield counts
            time.sleep(2)
        finally:
            out, _ = process.communicate("\n", timeout=60)
        counts.update(json.loads(out))

    def left(self) -> dict[str, str]:
        """Containers, volumes and networks of the project."""
        label = f"label=com.docker.compose.project={self.project}"
        return {
            "containers": docker("ps", "--all", "--quiet", "--filter", label).stdout,
            "volumes": docker("volume", "ls", "--quiet", "--filter", label).stdout,
            "networks": docker("network", "ls", "--quiet", "--filter", label).stdout,
        }

    def remove(self) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "20")


def ask(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None, **options: Any) -> bytes:
    """The body of a 200; JSON is sent unless the headers say otherwise."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=30, **options) as answer:
            content: bytes = answer.read()
            return content
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url}: {error.code} {error.read()[:500]!r}") from error


def clean_copy(directory: Path) -> Path:
    """What a clone of this checkout would hold."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    return directory


def free_ports() -> dict[str, int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    found = {name: probe.getsockname()[1] for name, probe in zip(PORTS, probes, strict=True)}
    for probe in probes:
        probe.close()
    return found


def listening() -> set[tuple[str, int]]:
    """Every TCP address that this machine listens on, as the kernel tells it: (address in hexadecimal digits, port)."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A":
                address, port = local.split(":")
                found.add((address, int(port, 16)))
    return found
