"""A Ray of our own: its head on this machine alone, behind a token, started when there is none and ended with us.

A head that outlived a killed service is found by its record, $STRIDE_HOME/jobs/ray.json, and taken over, with the jobs
that run on it. What is left of one that died is ended before the next is started.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from contracts import durable
from services.training.jobs.errors import RayError
from services.training.jobs.ray_jobs import RayJobs

HOST: Final = "127.0.0.1"
_DEADLINE_S: Final = 120.0
_GRACE_S: Final = 5.0
_OBJECTS: Final = 256 * 1024 * 1024
"""Ray's shared memory, which jobs hardly use; by default it takes 30% of the machine's."""
_AS_LONG_AS_IT_TAKES: Final = str(10 * 365 * 86_400)


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """How processes are known to be ours: `pipelines/owned_processes.py` has the three."""

    variable: str
    """Of the environment; it holds a random token in every process of a head."""
    alive: Callable[[int, float], bool]
    """Whether the process of this id, created at this time, lives."""
    end: Callable[[str, float], bool]
    """End every process with the token: SIGTERM, and SIGKILL after so many seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A head that was started: the content of ray.json."""

    pid: int
    started: float
    """When the process was created, in seconds since the epoch, as the system says."""
    port: int
    """Of the dashboard, which has the Jobs API."""
    mark: str
    """The token of its processes; not Ray's."""
    directory: str
    """Ray's own files; short, because the path of a socket must be."""


class OwnHead:
    """The head of one service.

    Args:
        jobs: The directory of jobs: record and token are kept there.
        log: Where Ray's start writes to.
        cpus: Cores that jobs may be given.
        gpus: GPUs that jobs may be given.
        processes: How they are known to be ours.
    """

    def __init__(self, jobs: Path, *, log: Path, cpus: int, gpus: int, processes: Processes) -> None:
        self._jobs, self._log = jobs, log
        self.cpus, self.gpus = cpus, gpus
        self._processes = processes
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def token_file(self) -> Path:
        return self._jobs / "ray-token"

    def token(self) -> str:
        """Ray's token; made once for a STRIDE_HOME, readable by its owner alone."""
        try:
            return self.token_file.read_text().strip()
        except FileNotFoundError:
            self._jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        token = secrets.token_hex(32)
        durable.write(self.token_file, token.encode(), mode=0o600)
        return token

    def running(self) -> str | None:
        """The address of the head that lives; None where there is none."""
        record = self._read()
        if record is None or not self._processes.alive(record.pid, record.started):
            return None
        return f"http://{HOST}:{record.port}"

    async def start(self) -> str:
        """Start a head, after the end of what is left of the one before; its address once it takes jobs.

        Raises:
            RayError: it ends, or does not answer in time; the message ends with the last line of its log.
        """
        await asyncio.to_thread(self.end)
        record = await asyncio.to_thread(self._launch)
        address = f"http://{HOST}:{record.port}"
        client = RayJobs(address, self.token())
        deadline = time.monotonic() + _DEADLINE_S
        try:
            while True:
                try:
                    await client.answers()
                    return address
                except RayError as error:
                    problem = error.message
                if not self._processes.alive(record.pid, record.started):
                    raise RayError(f"Ray's head ended before it answered: {self._last_line()}; its log is {self._log}.")
                if time.monotonic() > deadline:
                    raise RayError(f"Ray's head is not there after {_DEADLINE_S:g} s ({problem}); see {self._log}.")
                await asyncio.sleep(0.25)
        except BaseException:  # also when the service is stopped meanwhile: what does not answer does not stay
            await asyncio.to_thread(self.end)
            raise
        finally:
            await client.close()

    def end(self) -> None:
        """End the head and every process of it, and remove its files; nothing happens where there is none."""
        record = self._read()
        if record is None:
            return
        # Ray's workers write a title over their environment, and so over the mark: they are known as its descendants.
        family = _descendants(record) if self._processes.alive(record.pid, record.started) else []
        self._processes.end(record.mark, _GRACE_S)
        _, left = psutil.wait_procs(family, timeout=2)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self._child is not None:
            self._child.wait()
            self._child = None
        shutil.rmtree(record.directory, ignore_errors=True)
        self._record.unlink(missing_ok=True)

    @property
    def _record(self) -> Path:
        return self._jobs / "ray.json"

    def _read(self) -> Record | None:
        try:
            return Record(**json.loads(self._record.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # of another version: without its mark nothing can be proved to be ours
            self._record.unlink(missing_ok=True)
            return None

    def _launch(self) -> Record:
        mark, port, directory = secrets.token_hex(16), _free_port(), tempfile.mkdtemp(prefix="stride-ray-")
        self.token()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # Before the process: were we killed between the two, nobody would know that it is ours.
        self._write(Record(pid=0, started=0.0, port=port, mark=mark, directory=directory))
        with self._log.open("wb") as output:
            self._child = subprocess.Popen(  # noqa: S603 - our own command
                _command(port, directory, cpus=self.cpus, gpus=self.gpus),
                env=self._environment(mark),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C reaches the service, and the service ends Ray
            )
        pid = self._child.pid
        started = psutil.Process(pid).create_time()
        record = Record(pid=pid, started=started, port=port, mark=mark, directory=directory)
        self._write(record)
        return record

    def _write(self, record: Record) -> None:
        durable.write(self._record, json.dumps(asdict(record)).encode())

    def _environment(self, mark: str) -> dict[str, str]:
        environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A job that waits for its share is not a failed one.
            "RAY_JOB_START_TIMEOUT_SECONDS": _AS_LONG_AS_IT_TAKES,
            self._processes.variable: mark,
        }
        for name in ("RAY_AUTH_TOKEN", "RAY_ADDRESS"):
            environment.pop(name, None)
        return environment

    def _last_line(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1][:300].rstrip(".") if lines else "it wrote nothing"


def _command(port: int, directory: str, *, cpus: int, gpus: int) -> list[str]:
    return [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--port", "0", "--dashboard-host", HOST, "--dashboard-port", str(port), "--include-dashboard", "true"),
        # Not Ray's fixed ones: two services on a machine must not meet.
        *("--dashboard-agent-listen-port", "0", "--ray-client-server-port", str(_free_port())),
        *("--num-cpus", str(cpus), "--num-gpus", str(gpus), "--object-store-memory", str(_OBJECTS)),
        *("--temp-dir", directory, "--disable-usage-stats"),
    ]


def _descendants(record: Record) -> list[psutil.Process]:
    try:
        return psutil.Process(record.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
