"""Whether the tracking server can be reached, asked without importing MLflow."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Final

import httpx

from services.training.mlflow_client import redact

_TIMEOUT_S: Final = 3.0


async def tracking_problem(uri: str) -> str | None:
    """Why tracking at `uri` is of no use now; None where it is."""
    if uri.startswith(("http://", "https://")):
        return await _ask(uri)
    if uri.startswith("sqlite:///"):
        return await asyncio.to_thread(_open, Path(uri.removeprefix("sqlite:///")))
    return None  # a data base of another kind; the jobs will tell


async def _ask(uri: str) -> str | None:
    # MLflow's /health asks neither the data base nor the check of the Host header; this does.
    address = f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search"
    try:
        async with httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
            answer = await client.post(address, json={"max_results": 1})
    except httpx.HTTPError as error:
        return f"tracking at {redact(uri)}: no answer ({str(error) or type(error).__name__})"
    return None if answer.status_code == 200 else f"tracking at {redact(uri)}: HTTP {answer.status_code}"


def _open(path: Path) -> str | None:
    """The embedded data base: what is not there yet is made by the first job."""
    if not path.exists():
        return None
    try:
        connection = sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=_TIMEOUT_S)
        try:
            connection.execute("PRAGMA schema_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return f"tracking data base {path}: it cannot be opened ({error})"
    return None
