"""The command line of MLflow's server, embedded (SQLite and a plain directory) and in compose (Postgres, proxied).

    server = embedded(home=Path(".stride"))
    migrate(server)
    process = subprocess.Popen(server.command(), env=server.environment(os.environ))
    wait_until_ready(server.url, alive=lambda: process.poll() is None)

Command lines hold no password: the data base is given in the environment.
"""

from __future__ import annotations

import fcntl
import json
import shlex
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contracts.errors import RegistryError
from services.tracking.log_lines import CONFIG

_LOCAL: Final = ("localhost:*", "127.0.0.1:*", "[::1]:*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """One MLflow server.

    Either `artifact_root` (a plain directory: clients on this machine read and write it themselves) or `proxied`
    (artifacts go through the server, which keeps them there).
    """

    backend: str
    """SQLAlchemy URI of the data base."""
    artifact_root: Path | None = None
    proxied: str | None = None
    """A directory or an object store's URI, seen from the server."""
    host: str = "127.0.0.1"
    port: int = 5000
    names: tuple[str, ...] = ()
    """Further names that clients call the server by, with the port (`mlflow:5000`): MLflow answers 403 to any other
    Host header, while /health stays 200."""
    workers: int = 1
    """Processes, about 270 MB each, beside one that watches them."""
    json_log: bool = False
    """One line of JSON an event instead of MLflow's text."""

    def __post_init__(self) -> None:
        if (self.artifact_root is None) == (self.proxied is None):
            raise ValueError("a tracking server takes either artifact_root or proxied; give one of them")

    @property
    def url(self) -> str:
        return f"http://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"  # noqa: S104

    def command(self) -> list[str]:
        """The process to start; with `environment`."""
        # The default root decides where an experiment goes that a client creates over HTTP.
        if self.artifact_root is not None:
            root = str(self.artifact_root.absolute())
            artifacts = ["--default-artifact-root", root, "--artifacts-destination", root]
        else:
            artifacts = ["--serve-artifacts", "--artifacts-destination", str(self.proxied)]
        # uvicorn is a process that MLflow starts, so it is told of the log once more.
        started = "services.tracking.log_lines" if self.json_log else "mlflow"
        logged = ["--uvicorn-opts", f"--log-config {shlex.quote(str(CONFIG))}"] if self.json_log else []
        return [
            *(sys.executable, "-m", started, "server", *logged),
            *("--host", self.host, "--port", str(self.port), "--workers", str(self.workers)),
            # uvicorn, never --gunicorn-opts: that turns the check of the Host header off.
            *("--allowed-hosts", ",".join((*_LOCAL, *self.names))),
            *artifacts,
        ]

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """`base` with what the server needs."""
        return {
            **base,
            "MLFLOW_BACKEND_STORE_URI": self.backend,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # it would start a job runner that executes code on request
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PYTHONUNBUFFERED": "1",
            # Its own handlers, and Python's warnings to its developers, would write text.
            **({"MLFLOW_CONFIGURE_LOGGING": "false", "PYTHONWARNINGS": "ignore"} if self.json_log else {}),
        }

    def migration(self) -> list[str]:
        """The process that brings the data base to this MLflow's schema; it must end before the server starts."""
        # `mlflow db upgrade URI` itself, but with the URI, and the password in it, out of the process list.
        code = (
            "import os; from mlflow.db import commands; commands(['upgrade', os.environ['MLFLOW_BACKEND_STORE_URI']])"
        )
        return [sys.executable, "-c", code]


def embedded(*, home: Path, host: str = "127.0.0.1", port: int = 5000) -> Server:
    """The server of one machine, on the data base and the artifacts that direct SQLite clients use as well."""
    home = home.absolute()
    return Server(backend=f"sqlite:///{home / 'mlflow.db'}", artifact_root=home / "artifacts", host=host, port=port)


def migrate(server: Server, *, environment: Mapping[str, str]) -> None:
    """Bring the data base to this MLflow's schema, and create it where there is none.

    Raises:
        RegistryError: the migration failed; its last line is the reason.
    """
    with _alone(server.backend):
        done = subprocess.run(  # noqa: S603 - our own command line
            server.migration(), env=server.environment(environment), capture_output=True, text=True, check=False
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1].rstrip(".")
        raise RegistryError(
            f"tracking data base: its migration failed ({reason}); restore a backup, or start with an empty one."
        )


def wait_until_ready(url: str, *, alive: Callable[[], bool], timeout_s: float = 90.0) -> None:
    """Wait until the server answers from its data base.

    Args:
        url: Of the server.
        alive: False once its process has ended: nothing is waited for then.
        timeout_s: A first start on a slow machine takes about 15 s.

    Raises:
        RegistryError: the process ended, or the time is over.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        problem = problem_of(url)
        if problem is None:
            return
        if not alive():
            raise RegistryError(f"tracking server {url}: its process ended before it answered; see its log.")
        if time.monotonic() > deadline:
            raise RegistryError(f"tracking server {url}: not ready after {timeout_s:g} s ({problem}); see its log.")
        time.sleep(0.1)


def problem_of(url: str, *, timeout_s: float = 5.0) -> str | None:
    """Why the server is of no use, or None where it is.

    MLflow's /health asks neither the data base nor the check of the Host header, so one experiment is looked for.
    """
    request = urllib.request.Request(  # noqa: S310 - the address is the caller's own
        f"{url}/api/2.0/mlflow/experiments/search",
        data=json.dumps({"max_results": 1}).encode(),
        headers={"Content-Type": "application/json"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is for other machines
    try:
        with direct.open(request, timeout=timeout_s) as answer:
            json.load(answer)
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


@contextmanager
def _alone(backend: str) -> Iterator[None]:
    """The lock that a fit holds too while it makes the tables of a new SQLite data base (`<file>.lock`).

    Raises:
        RegistryError: the file is no data base, or cannot be opened; MLflow would try for a minute.
    """
    if not backend.startswith("sqlite:///"):
        yield
        return
    path = Path(backend.removeprefix("sqlite:///"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA schema_version")
    except (sqlite3.Error, OSError) as error:
        advice = "restore a backup, or move it away to start with an empty one"
        raise RegistryError(f"tracking data base {path}: it cannot be opened ({error}); {advice}.") from error
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
