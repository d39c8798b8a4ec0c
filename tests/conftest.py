"""What every test has: a STRIDE_HOME of its own, no settings from outside, and markers that skip with their reason.

Fixtures for any test: `home` (this test's STRIDE_HOME), `data_root` (the real data sets; skips without STRIDE_DATA),
`free_port`, `migrated_database` (an empty MLflow data base, made once), `embedded_tracking` (a copy of it in `home`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

_GIVEN_DATA = os.environ.get("STRIDE_DATA")
_COMPOSE_WANTED = os.environ.get("STRIDE_TEST_COMPOSE") == "1"
_CLEARED = ("MLFLOW_", "STRIDE_", "RAY_ADDRESS")
_TURN, _GATE = Path(__file__), Path(__file__).parent
"""Locked in `pytest_runtest_protocol`."""


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # it runs no test, and its workers have their environment from it
    # Before any fixture of any scope runs, so that nothing is ever written outside temporary directories.
    for key in [key for key in os.environ if key.startswith(_CLEARED)]:
        del os.environ[key]
    # One thread a test: two cores are shared, and small nets are slower with more. Fits ask for what they need.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that is marked `measured` runs while no other does, also where xdist runs several at a time."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    alone = item.get_closest_marker("measured") is not None
    with _TURN.open() as turn:
        gate = os.open(_GATE, os.O_RDONLY)
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)  # who waits for its turn here is not overtaken
            fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            os.close(gate)
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {
        "data": lambda: None if _GIVEN_DATA else "STRIDE_DATA does not say where the real data sets are",
        "gpu": _no_gpu,
        "compose": _no_docker,
    }
    for marker, reason in reasons.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (why := reason()):
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session", autouse=True)
def _session_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For fixtures of a wider scope than a test, which run before `home`."""
    os.environ["STRIDE_HOME"] = str(tmp_path_factory.mktemp("session") / "home")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's STRIDE_HOME; it does not exist yet."""
    path = tmp_path / "stride-home"
    monkeypatch.setenv("STRIDE_HOME", str(path))
    for key in [key for key in os.environ if key.startswith(_CLEARED) and key != "STRIDE_HOME"]:
        monkeypatch.delenv(key)
    return path


@pytest.fixture
def data_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real data sets in torchvision's layout, read-only; STRIDE_DATA points at them in this test."""
    if not _GIVEN_DATA:
        pytest.skip("STRIDE_DATA does not say where the real data sets are")
    path = Path(_GIVEN_DATA).absolute()
    monkeypatch.setenv("STRIDE_DATA", str(path))
    return path


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty data base of MLflow; its 40 migrations take seconds, hence once."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    directory = tmp_path_factory.mktemp("mlflow")
    path = directory / "mlflow.db"
    SqlAlchemyStore(f"sqlite:///{path}", str(directory / "artifacts"))  # type: ignore[no-untyped-call]
    return path


@pytest.fixture
def embedded_tracking(home: Path, migrated_database: Path) -> str:
    """The tracking URI of an empty, migrated data base in this test's home."""
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(migrated_database, home / "mlflow.db")
    return f"sqlite:///{home / 'mlflow.db'}"


def _no_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def _no_docker() -> str | None:
    if not _COMPOSE_WANTED:
        return "they build images and take minutes; `make test-compose` runs them"
    try:
        done = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "no Docker engine answers `docker info`"
    return None if done.returncode == 0 else "no Docker engine answers `docker info`"
