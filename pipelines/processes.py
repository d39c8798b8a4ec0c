"""The two local servers, MLflow and inference: started detached, watched until healthy, stopped without a rest.

Each server has a record in $STRIDE_HOME/run/NAME.json and a log in $STRIDE_HOME/logs/NAME.log. A server and all its
children carry the token of its record, by which `owned_processes` finds and ends them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import psutil

from contracts import places
from contracts.errors import StrideError
from pipelines import owned_processes

HOST: Final = "127.0.0.1"
ROOT: Final = Path(__file__).resolve().parents[1]
GRACE_S: Final = 12.0
"""How long a server may take to finish its requests after SIGTERM, before SIGKILL."""
_OURS: Final = ("STRIDE_", "OTEL_")
"""What the variables begin with that a server reads."""
_ASIDE: Final = ("STRIDE_PORT", "STRIDE_MLFLOW_PORT", "STRIDE_DEBUG", "STRIDE_API_KEY")
"""Those that do not make a running server out of date: its command holds the port, a key is the client's."""
_POLL_S: Final = 0.1
_TAIL: Final = 15


class ServerError(StrideError):
    """A server that cannot be started, or ends before it is healthy."""

    code = "server_failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """What to run, where it listens and how it says that it is well."""

    name: str
    command: tuple[str, ...]
    port: int
    health: str
    """A path that answers 200 once the process serves."""
    sources: tuple[str, ...] = ()
    """Directories under the repository's root whose change means that a running server is out of date."""
    environment: Mapping[str, str] = field(default_factory=dict)
    deadline_s: float = 90.0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def full_environment(self) -> dict[str, str]:
        """The environment of this process, with what the server needs, and with absolute paths: it runs in `ROOT`."""
        absolute = {"STRIDE_HOME": str(places.home())}
        if os.environ.get("STRIDE_DATA"):
            absolute["STRIDE_DATA"] = str(places.data())
        for name in ("STRIDE_API_KEYS_FILE", "STRIDE_PREDICTION_LOG"):
            if os.environ.get(name):
                absolute[name] = str(Path(os.environ[name]).expanduser().absolute())
        return {**os.environ, **absolute, **self.environment}

    def identity(self) -> str:
        """A digest of everything that decides what runs: command, environment and code."""
        settings = {k: v for k, v in self.full_environment().items() if k.startswith(_OURS) and k not in _ASIDE}
        # Not MLFLOW_*: MLflow writes such variables into the environment of the process that it is used in.
        content = [self.command, sorted({**settings, **self.environment}.items())]
        digest = hashlib.sha256(json.dumps(content).encode())
        for directory in self.sources:
            for path in sorted((ROOT / directory).rglob("*.py")):
                digest.update(path.read_bytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A server that was started: the content of $STRIDE_HOME/run/NAME.json."""

    name: str
    pid: int
    started: float
    """When the process was created, in seconds since the epoch, as the system says."""
    token: str
    identity: str
    url: str
    health: str
    log: str
    reused: bool = False

    @property
    def alive(self) -> bool:
        return owned_processes.alive(self.pid, self.started)

    @property
    def healthy(self) -> bool:
        return answers(self.url + self.health)


def start(server: Server, *, prepare: Callable[[], None] | None = None) -> Record:
    """Start a server and wait until it is healthy; one that runs already, is healthy and up to date is kept.

    Args:
        server: What to run.
        prepare: Called before a process is started, not where one is kept.

    Raises:
        ServerError: its port is taken by something else, it ends, or it is not healthy before its deadline; the
            message then ends with the last lines of its log.
    """
    with _lock():
        former = find(server.name)
        if former is not None:
            if former.identity == server.identity() and former.alive and former.healthy:
                return replace(former, reused=True)
            _end(former)
        _check_port(server)
        if prepare is not None:
            prepare()
        # The lock is held until it is healthy: a second start must find a server, not one that is on its way.
        record = _launch(server)
        try:
            _wait(record, server.deadline_s)
        except BaseException:  # also Ctrl-C: what does not become healthy does not stay
            _end(record)
            raise
        return record


def stop(name: str) -> bool:
    """End a server and every process that it started; False if there was none."""
    with _lock():
        record = find(name)
        return record is not None and _end(record)


def known() -> list[Record]:
    """The records of all servers, running or not, in the order of their names."""
    found = (find(path.stem) for path in sorted(_directory("run").glob("*.json")))
    return [record for record in found if record is not None]


def find(name: str) -> Record | None:
    """The record of a server, whether it still runs or not."""
    path = _directory("run") / f"{name}.json"
    try:
        return Record(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):  # written by another version: without a token nothing can be proved to be ours
        path.unlink(missing_ok=True)
        return None


def members(record: Record) -> list[psutil.Process]:
    """Every living process of a server: its leader, its workers, and workers that outlived it."""
    return owned_processes.members(record.token)


def answers(url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether a GET of this address on this machine is answered with 200."""
    import httpx

    try:  # trust_env=False: a proxy of the environment must not be asked for 127.0.0.1
        return httpx.get(url, timeout=timeout_s, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def tail(path: str | Path, lines: int = _TAIL) -> str:
    """The last lines of a log, indented."""
    try:
        text = Path(path).read_text(errors="replace").rstrip().splitlines()[-lines:]
    except OSError:
        return "  (no log)"
    return "\n".join(f"  {line}" for line in text) or "  (the log is empty)"


def _launch(server: Server) -> Record:
    log = _directory("logs") / f"{server.name}.log"
    token = secrets.token_hex(16)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - the command is one of our own
            server.command,
            cwd=ROOT,
            env={**server.full_environment(), owned_processes.TOKEN: token},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the terminal's Ctrl-C and hang-up do not reach it
        )
    record = Record(
        name=server.name,
        pid=process.pid,
        started=psutil.Process(process.pid).create_time(),
        token=token,
        identity=server.identity(),
        url=server.url,
        health=server.health,
        log=str(log),
    )
    path = _directory("run") / f"{server.name}.json"
    staged = path.with_suffix(".tmp")
    staged.write_text(json.dumps(asdict(record), indent=2))
    staged.replace(path)
    # Popen warns when it is dropped while its process lives, and this one is meant to outlive it.
    process.returncode = 0
    return record


def _wait(record: Record, deadline_s: float) -> None:
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if not record.alive:
            raise ServerError(
                f"{record.name} ended before it was healthy; its log {record.log} ends:\n{tail(record.log)}"
            )
        if record.healthy:
            return
        time.sleep(_POLL_S)
    detail = f"{record.url}{record.health} did not answer 200 within {deadline_s:.0f} s"
    raise ServerError(f"{record.name} was stopped, for {detail}; its log {record.log} ends:\n{tail(record.log)}")


def _end(record: Record) -> bool:
    """End every member, and take the record away; False if there was none."""
    ended = owned_processes.end(record.token, grace_s=GRACE_S)
    with suppress(ChildProcessError):  # the leader may be our own child, dead and not yet waited for
        os.waitpid(record.pid, os.WNOHANG)
    current = find(record.name)
    if current is not None and current.token == record.token:
        (_directory("run") / f"{record.name}.json").unlink(missing_ok=True)
    return ended


def _check_port(server: Server) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, server.port))
        except OSError as error:
            flag, variable = (
                ("--mlflow-port", "STRIDE_MLFLOW_PORT") if server.name == "mlflow" else ("--port", "STRIDE_PORT")
            )
            raise ServerError(
                f"port {server.port} on {HOST}, which {server.name} needs, is taken by {_holder(server.port)}; "
                f"stop that, or choose another port with {flag} or {variable}."
            ) from error


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1:] == (port,)
            if listening and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        return "another program"
    return "another program"


def _directory(name: str) -> Path:
    path = places.home() / name
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextmanager
def _lock() -> Iterator[None]:
    """One start or stop at a time for one STRIDE_HOME."""
    with (_directory("run") / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def python_module(*arguments: str) -> tuple[str, ...]:
    """A command line that runs a module of this very interpreter."""
    return (sys.executable, "-m", *arguments)
