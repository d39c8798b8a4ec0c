"""`python -m pipelines.training_service --host 127.0.0.1 --port 8000`: the training service, until SIGTERM.

It takes jobs at once and begins them when Ray is there, some 10 s later; /readyz says when. On SIGTERM or Ctrl-C its
jobs have STRIDE_JOBS_GRACE_SECONDS (20) for their checkpoints, the rest takes 15 s at most, and it exits 0; the jobs go
on at the next start. A second Ctrl-C gives them no more time: they go on from the checkpoint before. The environment
says the rest, see services/training/jobs/settings.py.

Exit codes: 0 ended as told, 1 failed, 2 refused (bad usage or settings).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Final

import uvicorn

from contracts.api_keys import read as read_keys
from contracts.errors import StrideError
from pipelines import owned_processes
from pipelines.job_work import job_environment, resolve, share_of
from services.training.jobs import log, machine
from services.training.jobs.app import build
from services.training.jobs.head import OwnHead, Processes
from services.training.jobs.job import Share
from services.training.jobs.metrics import Metrics
from services.training.jobs.ray_jobs import RayJobs, cluster_token
from services.training.jobs.runner import Runner
from services.training.jobs.service import Service
from services.training.jobs.settings import Settings, read
from services.training.jobs.store import Store
from services.training.jobs.tracking import tracking_problem

_STREAMS_S: Final = 3
"""From SIGTERM to the end of requests that are being answered; live logs end at once."""


class ServiceError(StrideError):
    """The service cannot be started."""

    code = "server_failed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service with the arguments of the process, or with those given; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.training_service", description="The training service.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", default=8000, type=_port, help="port to listen on (8000)")
    given = parser.parse_args(arguments)
    log.configure()
    try:
        settings = read(host=given.host, port=given.port)
        if settings.keys_file is not None:
            read_keys(settings.keys_file, "STRIDE_JOBS_KEYS_FILE")
        if settings.metrics_keys_file is not None:
            read_keys(settings.metrics_keys_file, "STRIDE_METRICS_KEYS_FILE")
        with _listen(settings.host, settings.port) as listening:
            service = compose(settings)
            _serve(service, listening)
    except StrideError as error:
        sys.stderr.write(f"error: {error.message}\n")
        return error.exit_code
    return 0


def compose(settings: Settings) -> Service:
    """Put a service together; nothing runs yet.

    Raises:
        StoreError: the directory of jobs cannot be used.
        RayError, RecipeError: the settings of Ray or of the device cannot be followed.
    """
    head = None if settings.ray_address else _own_head(settings)
    gpus = settings.gpus if settings.gpus is not None else float(bool(head and head.gpus))
    at_once = settings.at_once or max(1, int(head.gpus / gpus) if head and gpus else 1)
    cpus = settings.cpus if settings.cpus is not None else (max(1, head.cpus // at_once) if head else 0)
    usual = Share(cpus=cpus, gpus=gpus)
    token = head.token() if head else cluster_token()
    metrics = Metrics()
    store = Store(settings.jobs)
    runner = Runner(
        settings,
        store,
        head=head,
        at_once=at_once,
        environment=job_environment(settings),
        connect=lambda address: RayJobs(address, token),
        metrics=metrics,
    )
    return Service(
        settings=settings,
        store=store,
        runner=runner,
        metrics=metrics,
        resolve=resolve,
        share=lambda request: share_of(request, usual, available=head.gpus if head else None),
        tracking_problem=lambda: tracking_problem(settings.tracking_uri),
    )


def _own_head(settings: Settings) -> OwnHead:
    processes = Processes(
        variable=owned_processes.TOKEN,
        alive=owned_processes.alive,
        end=lambda token, grace_s: owned_processes.end(token, grace_s=grace_s),
    )
    return OwnHead(
        settings.jobs,
        log=settings.home / "logs" / "ray.log",
        cpus=machine.cores(),
        gpus=machine.gpus(),
        processes=processes,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which says at the signal that the end has begun: streams would keep it open."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._service.draining = True
        # Not uvicorn's own: at a second Ctrl-C it leaves the lifespan's end out, and so Ray and its jobs running.
        if self.should_exit and sig == signal.SIGINT:
            self._service.runner.hurry()
        self.should_exit = True


def _serve(service: Service, listening: socket.socket) -> None:
    config = uvicorn.Config(
        build(service),
        log_config=None,  # our own lines; uvicorn's access log would tell of every probe
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STREAMS_S,
        limit_concurrency=512,
        lifespan="on",
    )
    # uvicorn raises the signal again once all is done, for whoever wants to die of it; this exits 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    asyncio.run(_Server(config, service).serve(sockets=[listening]))


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 1 to 65535.")
    return int(text)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise ServiceError(
            f"the training service cannot listen on {host} port {port} ({reason}); choose others by --host and --port."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
