"""The way to MLflow: quiet, checked before it is used, and with errors that say where and what to do.

MLflow is imported on the first connection (it takes seconds), never with this module.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from contracts import places
from contracts.errors import RegistryError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_DEFAULTS: Final = {
    # Seven retries of up to 120 s each is what MLflow does by itself: a fit would hang for minutes without a word.
    # Five bridge a server that is being restarted (about half a minute).
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "5",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # What MLflow prints would stand among a command's JSON, and its progress bars in its log.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_SERVER: Final = ("http://", "https://")


def connect(uri: str | None = None) -> MlflowClient:
    """A client of the tracking server at `uri` (`places.tracking_uri()` without one), which has been reached.

    A new SQLite data base is created with its tables; processes that do so at once wait for each other.

    Raises:
        RegistryError: nothing answers (known within about 10 s), or the data base cannot be opened or is outdated.
    """
    uri = uri or places.tracking_uri()
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    with registry_errors(uri, "to connect"):
        from mlflow.tracking import MlflowClient

        # For a program that imported MLflow before the variable was set.
        logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
        if uri.startswith(_SERVER):
            reach(uri)
            return MlflowClient(uri)
        if not uri.startswith("sqlite:///"):
            return MlflowClient(uri)
        path = Path(uri.removeprefix("sqlite:///"))
        _open(path)
        with _first_use(path):
            return MlflowClient(uri)


@contextmanager
def registry_errors(uri: str, doing: str) -> Iterator[None]:
    """Turns whatever MLflow and what lies under it raise into one sentence.

    Raises:
        RegistryError: `doing` failed at `uri`.
    """
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:
        # Looked up here, because a `from mlflow import` above would cost seconds where nothing goes wrong.
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        # OSError: the disk, and every error of requests, which uploads artifacts.
        if not isinstance(error, MlflowException | SQLAlchemyError | sqlite3.Error | OSError):
            raise
        reason = _reason(error)
        advice = "see its log and the access rights"
        if "out-of-date database schema" in str(error):
            advice = f"back it up and run `mlflow db upgrade {redact(uri)}`"
        raise RegistryError(f"tracking at {redact(uri)}: {doing} failed ({reason}); {advice}.") from error


def redact(uri: str) -> str:
    """`uri` without the password in it."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", uri)


def reach(uri: str) -> None:
    """Ask a server for its health, with MLflow's own settings of proxies, certificates and credentials.

    Raises:
        RegistryError: nothing answers (known within about 10 s). What is no server is not asked.
    """
    if not uri.startswith(_SERVER):
        return
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        # Any answer will do: what stands before the server may hide /health.
        credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
        http_request(  # type: ignore[no-untyped-call]
            credentials, "/health", "GET", max_retries=1, timeout=4, retry_codes=(), backoff_factor=0
        )
    except MlflowException as error:
        advice = "start it (`stride serve`, `docker compose up`), or unset MLFLOW_TRACKING_URI for the embedded one"
        raise RegistryError(
            f"tracking at {redact(uri)}: no answer, an MLflow server was expected; {advice}."
        ) from error


def _open(path: Path) -> None:
    """Open the data base for writing: MLflow would retry a path that can never work for minutes."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=30, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        advice = "set STRIDE_HOME to a directory that can be written, or MLFLOW_TRACKING_URI to a server"
        raise RegistryError(f"tracking data base {path}: it cannot be opened ({_reason(error)}); {advice}.") from error


@contextmanager
def _first_use(path: Path) -> Iterator[None]:
    """Held while MLflow makes its tables and its default experiment; its own lock covers the tables only."""
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]
