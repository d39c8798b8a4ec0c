"""A compose project as the tests use it: brought up, asked, killed, looked into."""

from __future__ import annotations

import base64
import functools
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

ROOT: Final = Path(__file__).resolve().parents[2]
BASE_IMAGE: Final = "python:3.11-slim-bookworm"
PORTS: Final = ("STRIDE_PORT", "STRIDE_MLFLOW_PORT", "STRIDE_JOBS_PORT", "STRIDE_PROMETHEUS_PORT", "STRIDE_EDGE_PORT")
EDGE: Final = "infra/compose.edge.yml"
Service = Literal["inference", "tracking", "training", "prometheus"]
_PORT_OF: Final = {
    "inference": "STRIDE_PORT",
    "tracking": "STRIDE_MLFLOW_PORT",
    "training": "STRIDE_JOBS_PORT",
    "prometheus": "STRIDE_PROMETHEUS_PORT",
}
_NAME_OF: Final = {"inference": "localhost", "tracking": "mlflow.localhost", "training": "training.localhost"}


@dataclass(frozen=True)
class Answer:
    """Of an HTTP request; the names of the headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Stack:
    """A compose project in a directory; behind nginx where its files say so, which is then what is asked."""

    def __init__(self, directory: Path, project: str, ports: Mapping[str, int], **settings: str) -> None:
        self.directory, self.project, self.ports = directory, project, ports
        self.files: tuple[str, ...] = ("docker-compose.yml",)
        self.api_key = ""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("STRIDE_", "COMPOSE_"))}
        numbers = {name: str(port) for name, port in ports.items()}
        self.environment = {**own, **numbers, **settings, "COMPOSE_PROJECT_NAME": project}

    def compose(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        files = [word for file in self.files for word in ("-f", file)]
        return docker("compose", *files, *arguments, check=check, cwd=self.directory, env=self.environment, **options)

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the repository, such as make, on this stack."""
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def up(self, *services: str, profile: str = "") -> None:
        asked = ("--profile", profile) if profile else ()
        done = self.compose(*asked, "up", "--detach", "--wait", *services, check=False)
        if done.returncode:
            seen = self.compose("ps", "--all", check=False).stdout
            logs = self.compose("logs", "--tail", "60", check=False).stdout
            raise AssertionError(f"up: exit {done.returncode}\n{done.stderr[-3000:]}\n{seen}\n{logs[-12000:]}")

    def remove(self) -> None:
        self.files = ("docker-compose.yml",)
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "20")

    def require_keys(self, directory: Path) -> None:
        """From the next `up` on inference asks for a key, a new one of the file `keys` in `directory`."""
        self.api_key = secrets.token_hex(16)
        (directory / "keys").write_text(f"{self.api_key}\n")
        self.environment["STRIDE_API_KEYS"] = str(directory)

    def ask(
        self,
        service: Service,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        key: bool = True,
        method: str | None = None,
    ) -> Answer:
        """A 2xx of a service, from outside, with the key and the password that it wants; JSON is sent by default.

        Raises:
            AssertionError: another status, which its text begins with.
        """
        wanted = {"Content-Type": "application/json", **(self._credentials(service) if key else {}), **(headers or {})}
        if EDGE not in self.files or service == "prometheus":
            answer = request(f"http://127.0.0.1:{self.ports[_PORT_OF[service]]}{path}", body, wanted, method)
        else:
            url = f"https://localhost:{self.ports['STRIDE_EDGE_PORT']}{path}"
            wanted = {"Host": _NAME_OF[service], **wanted}
            answer = request(url, body, wanted, method, context=self._trusted)
        if not 200 <= answer.status < 300:
            raise AssertionError(f"{answer.status} {service} {path}: {answer.body[:500]!r}")
        return answer

    def get(self, service: Service, path: str) -> Any:
        return json.loads(self.ask(service, path).body)

    def _credentials(self, service: Service) -> dict[str, str]:
        if service == "inference":
            return {"X-API-Key": self.api_key} if self.api_key else {}
        given = {"X-API-Key": self._jobs_key} if service == "training" else {}
        if EDGE in self.files and service in ("tracking", "training"):
            pair = base64.b64encode(f"stride:{self._edge_password}".encode()).decode()
            given["Authorization"] = f"Basic {pair}"
        return given

    @functools.cached_property
    def _jobs_key(self) -> str:
        return self.read("training", "/run/secrets/keys").strip()

    @functools.cached_property
    def _edge_password(self) -> str:
        return self.read("edge", "/run/secrets/password").strip()

    @functools.cached_property
    def _trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.read("edge", "/run/tls/tls.crt"))

    def read(self, service: str, path: str) -> str:
        """A file of a container."""
        return self.compose("exec", "-T", service, "cat", path).stdout

    def log(self, service: str) -> list[str]:
        """Its lines; some releases of compose clear a terminal's line before each, where there is no terminal, too."""
        shown = self.compose("logs", "--no-log-prefix", "--no-color", service).stdout
        return shown.replace("\x1b[2K", "").splitlines()

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine says of every container of the project, ended ones too, by service."""
        ids = docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}").stdout
        found = json.loads(docker("inspect", *ids.split()).stdout) if ids.split() else []
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in found}

    def published(self) -> set[tuple[str, int]]:
        """(address, port) of every port that the engine publishes for the project."""
        return {
            (binding["HostIp"], int(binding["HostPort"]))
            for each in self.containers().values()
            for bindings in (each["NetworkSettings"]["Ports"] or {}).values()
            for binding in bindings or []
        }

    def kill(self, service: str, *, timeout_s: float = 30) -> None:
        """SIGKILL to the container's first process, from outside: `docker kill` would mean to end it for good.

        Comes back once the engine has started it again.
        """
        pid = self.containers()[service]["State"]["Pid"]
        code = f"import os; os.kill({pid}, 9)"
        docker("run", "--rm", "--pid=host", "--cap-drop=ALL", "--cap-add=KILL", BASE_IMAGE, "python3", "-c", code)
        deadline = time.monotonic() + timeout_s
        while (state := self.containers()[service]["State"])["Pid"] in (0, pid):
            assert time.monotonic() < deadline, f"{service} was not started again: {state}"
            time.sleep(0.1)

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


def docker(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def request(
    url: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    method: str | None = None,
    **options: Any,
) -> Answer:
    """The answer, whatever its status."""
    asked = urllib.request.Request(url, data=body, headers=dict(headers or {}), method=method)
    try:
        with urllib.request.urlopen(asked, timeout=30, **options) as answer:
            return Answer(answer.status, _headers(answer), answer.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, _headers(error), error.read())


def _headers(answer: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items()}


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
