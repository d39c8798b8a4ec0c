"""The machine that is measured on, and what the run needs of it."""

from __future__ import annotations

import os
import platform
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import FrameType
from typing import Any

import psutil

from benchmarks.serving.plan import MOST_CONNECTIONS
from contracts import cpu
from contracts.errors import RecipeError


def cores() -> tuple[int, int]:
    """The client's and the server's."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(usable) < 2:
        raise RecipeError(
            f"the benchmark may use {len(usable)} core(s) here; it takes Linux and two, one for the server and one for "
            "the client."
        )
    return usable[0], usable[-1]


def machine(cores: tuple[int, int]) -> dict[str, Any]:
    return {
        "processor": cpu.name(),
        "cores": len(os.sched_getaffinity(0)) if len(os.sched_getaffinity(0)) > 1 else os.cpu_count(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "client_core": cores[0],
        "server_core": cores[1],
    }


def installed(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:  # onnxruntime has another name on other machines
        return False


@contextmanager
def many_files() -> Iterator[None]:
    """Room for all connections; as before behind it."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + 500
    hard = limit[1]
    if hard not in (-1, resource.RLIM_INFINITY) and hard < wanted:
        raise RecipeError(
            f"the limit of open files is {hard} here; the benchmark takes {wanted}: raise it (ulimit -n)."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit[0], wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does: with what was started, and with the results so far on disk."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
