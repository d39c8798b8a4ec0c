"""What the environment says about the training service, read once when it starts.

| variable | meaning | default |
|---|---|---|
| STRIDE_HOME | jobs, their logs and Ray's token are kept in its directory jobs/ | .stride |
| STRIDE_DATA, STRIDE_DEVICE | as every command reads them; passed on to the jobs | |
| MLFLOW_TRACKING_URI | where the jobs track their runs | the embedded data base |
| STRIDE_MLFLOW_UI | where a browser finds MLflow, for links | MLFLOW_TRACKING_URI, where it is a server's |
| STRIDE_JOBS_KEYS_FILE | who may ask: a file of keys, see contracts/api_keys.py | nobody is asked, on loopback only |
| STRIDE_METRICS_KEYS_FILE | further keys, for /metrics alone | none |
| STRIDE_JOBS_OPEN | 1: ask nobody for a key on other addresses either; something in front must | 0 |
| STRIDE_JOBS_AT_ONCE | jobs that run at the same time | one a GPU; 1 without |
| STRIDE_JOBS_GPUS | GPUs of a train or ship job, below 1 a share of one, 0.05 at least | 1 where there is one, else 0 |
| STRIDE_JOBS_CPUS | cores that Ray keeps for such a job | all cores over the jobs at once; 0 on a cluster |
| STRIDE_JOBS_QUEUED | most jobs that wait; more are answered 429 | 1000 |
| STRIDE_JOBS_LOSSES | how often a job is begun again after its process was lost | 3 |
| STRIDE_JOBS_KEEP | most jobs that have ended and are kept, with their logs; older ones are forgotten | 1000 |
| STRIDE_JOBS_KEEP_DAYS | how long one is kept; its Idempotency-Key is known as long | 90 |
| STRIDE_JOBS_GRACE_SECONDS | from SIGTERM to SIGKILL for a job: time for a checkpoint | 20 |
| RAY_ADDRESS | a cluster's dashboard, http://HOST:8265; its nodes share STRIDE_HOME and the image | a head of our own |
| RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH | the cluster's token, or a file that holds it | ~/.ray/auth_token |
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from contracts import places
from contracts.errors import RecipeError
from services.training.jobs.job import wrong_gpus

END_S: Final = 15.0
"""How long the service takes for its own end, beside the jobs' grace: streams, and Ray's head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The module's table says what each means."""

    home: Path
    tracking_uri: str
    host: str = "127.0.0.1"
    port: int = 8000
    mlflow_ui: str | None = None
    keys_file: Path | None = None
    metrics_keys_file: Path | None = None
    open: bool = False
    at_once: int | None = None
    gpus: float | None = None
    cpus: float | None = None
    queued: int = 1000
    losses: int = 3
    keep: int = 1000
    keep_days: float = 90.0
    grace_s: float = 20.0
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if not self.loopback and self.keys_file is None and not self.open:
            raise RecipeError(
                f"the training service would listen on {self.host} and ask nobody for a key; set "
                "STRIDE_JOBS_KEYS_FILE to a file of keys, or STRIDE_JOBS_OPEN=1 where something in front of it asks."
            )
        if self.metrics_keys_file is not None and self.keys_file is None:
            raise RecipeError(
                "STRIDE_METRICS_KEYS_FILE is set and STRIDE_JOBS_KEYS_FILE is not, so nobody is asked for a key; "
                "set both, or neither."
            )
        if self.ray_address is not None and not self.ray_address.startswith(("http://", "https://")):
            raise RecipeError(
                f"RAY_ADDRESS is {self.ray_address!r}; the training service needs the address of the cluster's "
                "dashboard, such as http://head:8265, or none for a Ray of its own."
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def jobs(self) -> Path:
        """Where jobs are kept."""
        return self.home / "jobs"


def read(environment: Mapping[str, str] | None = None, *, host: str = "127.0.0.1", port: int = 8000) -> Settings:
    """The settings of `environment`, the process' own by default.

    Raises:
        RecipeError: one sentence that names the variable, its value and what was expected.
    """
    env = os.environ if environment is None else environment
    tracking_uri = env.get("MLFLOW_TRACKING_URI") or places.tracking_uri()
    server = tracking_uri if tracking_uri.startswith("http") and "@" not in tracking_uri else None
    gpus = _number(env, "STRIDE_JOBS_GPUS", most=64)
    if gpus is not None and (wrong := wrong_gpus(gpus)) is not None:
        raise RecipeError(f"STRIDE_JOBS_GPUS is {gpus:g}; {wrong}.")
    keys, metrics_keys = env.get("STRIDE_JOBS_KEYS_FILE"), env.get("STRIDE_METRICS_KEYS_FILE")
    return Settings(
        home=Path(env.get("STRIDE_HOME") or places.home()).absolute(),
        tracking_uri=tracking_uri,
        host=host,
        port=port,
        mlflow_ui=env.get("STRIDE_MLFLOW_UI") or server,
        keys_file=Path(keys).expanduser().absolute() if keys else None,
        metrics_keys_file=Path(metrics_keys).expanduser().absolute() if metrics_keys else None,
        open=_flag(env, "STRIDE_JOBS_OPEN"),
        at_once=_count(env, "STRIDE_JOBS_AT_ONCE", None, most=1024),
        gpus=gpus,
        cpus=_number(env, "STRIDE_JOBS_CPUS", most=4096),
        queued=_count(env, "STRIDE_JOBS_QUEUED", 1000, most=10**6) or 1000,
        losses=_count(env, "STRIDE_JOBS_LOSSES", 3, least=0, most=1000) or 0,
        keep=_count(env, "STRIDE_JOBS_KEEP", 1000, most=10**6) or 1000,
        keep_days=_number(env, "STRIDE_JOBS_KEEP_DAYS", least=1, most=36_500) or 90.0,
        grace_s=_number(env, "STRIDE_JOBS_GRACE_SECONDS", least=1, most=3600) or 20.0,
        ray_address=(env.get("RAY_ADDRESS") or "").rstrip("/") or None,
    )


def _count(env: Mapping[str, str], name: str, default: int | None, *, least: int = 1, most: int) -> int | None:
    text = env.get(name)
    if not text:
        return default
    if not text.isdecimal() or not least <= int(text) <= most:
        raise RecipeError(f"{name} is {text!r}; set it to a whole number from {least} to {most}.")
    return int(text)


def _number(env: Mapping[str, str], name: str, *, least: float = 0, most: float) -> float | None:
    text = env.get(name)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not least <= value <= most:  # also refuses nan
        raise RecipeError(f"{name} is {text!r}; set it to a number from {least:g} to {most:g}.")
    return value


def _flag(env: Mapping[str, str], name: str) -> bool:
    text = (env.get(name) or "0").lower()
    if text not in ("0", "1", "false", "true"):
        raise RecipeError(f"{name} is {text!r}; set it to 0 or 1.")
    return text in ("1", "true")
