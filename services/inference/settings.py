"""What the environment says about serving, read once when the service starts.

| variable | meaning | default |
|---|---|---|
| STRIDE_MODEL | the model that answers /v1/predict | the only one, or the one promoted last |
| STRIDE_MODELS | these alone, comma-separated: NAME (its champion), NAME@ALIAS, NAME:VERSION | all with a champion |
| STRIDE_DEVICE | auto, cpu or cuda; `cuda` refuses to fall back | auto |
| STRIDE_REQUIRE_GPU | 1: never be ready without a GPU | 0 |
| STRIDE_HOME | the last good bundles are kept in its directory serving/ | .stride |
| MLFLOW_TRACKING_URI | the registry that is polled | the embedded data base |
| STRIDE_POLL_SECONDS | between two looks at the registry | 2 |
| STRIDE_QUEUE_ROWS | images admitted at a time, per model and worker; more are answered 429 | 1024 |
| STRIDE_DEADLINE_SECONDS | from the last byte of a request to its answer | 5 |
| STRIDE_BODY_SECONDS | for a request's head to arrive, and again for its body | 30 |
| STRIDE_KEEP_ALIVE_SECONDS | an idle connection is kept; above what a balancer in front keeps its own, mostly 60 | 75 |
| STRIDE_GRACE_SECONDS | from SIGTERM to the last answer; above the deadline | 8 |
| STRIDE_MAX_BYTES | largest request body | 33554432 |
| STRIDE_MAX_INFLIGHT_BYTES | bytes of bodies at a time, per worker; more are answered 429 | 268435456 |
| STRIDE_MAX_PIXELS | largest width x height of an image | 50000000 |
| STRIDE_MAX_PARTS | most images of one request | 64 |
| STRIDE_MAX_BATCH | most images of one run of the graph | 64 |
| STRIDE_API_KEYS_FILE | who may ask: a file of keys, see keys.py | everybody may |
| STRIDE_METRICS_KEYS_FILE | further keys, for /metrics alone | none |
| STRIDE_PREDICTION_LOG | a directory for a sample of the answers, see prediction_log.py | nothing is kept |
| STRIDE_PREDICTION_LOG_SAMPLE | the part of the requests that is kept, 0 to 1 | 0.1 |
| STRIDE_PREDICTION_LOG_PIXELS | 1: keep the images too | 0 |
| STRIDE_PREDICTION_LOG_BYTES | of all its files together; the oldest are removed | 1073741824 |
| STRIDE_DRIFT_WINDOW | the last images that drift is told of, see drift.py; 0: it is not told | 2000 |
| STRIDE_WORKERS | processes | 1 |
| STRIDE_THREADS | onnxruntime's threads of a worker; 0 takes the cores this process may use, over the workers | 0 |
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from contracts import places
from contracts.errors import RecipeError
from contracts.images import MAX_PIXELS
from services.inference.pins import Pin, parse

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """One worker's settings; the module's table says what each means."""

    home: Path
    tracking_uri: str
    model: str | None = None
    models: tuple[str, ...] = ()
    pins: Mapping[str, Pin] = field(default_factory=dict)
    """Which version of each of `models` is served."""
    device: Device = "auto"
    require_gpu: bool = False
    poll_s: float = 2.0
    queue_rows: int = 1024
    deadline_s: float = 5.0
    body_s: float = 30.0
    keep_alive_s: float = 75.0
    grace_s: float = 8.0
    max_bytes: int = 32 * 1024 * 1024
    max_inflight_bytes: int = 256 * 1024 * 1024
    max_pixels: int = MAX_PIXELS
    max_parts: int = 64
    max_batch: int = 64
    workers: int = 1
    threads: int = 0
    api_keys_file: Path | None = None
    metrics_keys_file: Path | None = None
    prediction_log: Path | None = None
    prediction_log_sample: float = 0.1
    prediction_log_pixels: bool = False
    prediction_log_bytes: int = 1024**3
    drift_window: int = 2000

    def __post_init__(self) -> None:
        if self.require_gpu and self.device == "cpu":
            raise RecipeError("STRIDE_REQUIRE_GPU is 1 and STRIDE_DEVICE is 'cpu'; set STRIDE_DEVICE to auto or cuda.")
        if self.metrics_keys_file is not None and self.api_keys_file is None:
            raise RecipeError(
                "STRIDE_METRICS_KEYS_FILE is set and STRIDE_API_KEYS_FILE is not, so nobody is asked for a key; "
                "set both, or neither."
            )
        if self.model is not None and (":" in self.model or "@" in self.model):
            detail = "give the model's name alone, and name its version in STRIDE_MODELS"
            raise RecipeError(f"STRIDE_MODEL is {self.model!r}; {detail}.")
        if self.deadline_s >= self.grace_s:
            wanted = f"less than STRIDE_GRACE_SECONDS ({self.grace_s:g})"
            raise RecipeError(f"STRIDE_DEADLINE_SECONDS is {self.deadline_s:g}; it must be {wanted}, lower it.")
        if self.max_bytes > self.max_inflight_bytes:
            wanted = f"at most STRIDE_MAX_INFLIGHT_BYTES ({self.max_inflight_bytes})"
            raise RecipeError(f"STRIDE_MAX_BYTES is {self.max_bytes}; it must be {wanted}, lower it.")
        if self.max_parts > self.queue_rows:
            wanted = f"at most STRIDE_QUEUE_ROWS ({self.queue_rows})"
            raise RecipeError(f"STRIDE_MAX_PARTS is {self.max_parts}; it must be {wanted}, lower it.")

    @property
    def names(self) -> tuple[str, ...]:
        """The registered models to serve; empty for every one that has a champion."""
        if self.model is not None and self.models:
            return tuple(dict.fromkeys((self.model, *self.models)))
        return (self.model,) if self.model is not None else self.models

    def pin(self, name: str) -> Pin:
        return self.pins.get(name, Pin())


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of `environment`, the process' own by default.

    Raises:
        RecipeError: one sentence that names the variable, its value and what was expected.
    """
    env = os.environ if environment is None else environment
    device = env.get("STRIDE_DEVICE") or "auto"
    if device not in ("auto", "cpu", "cuda"):
        raise RecipeError(f"STRIDE_DEVICE is {device!r}; set it to auto, cpu or cuda.")
    pins = parse(env.get("STRIDE_MODELS") or "")
    return Settings(
        home=Path(env.get("STRIDE_HOME") or places.home()).absolute(),
        tracking_uri=env.get("MLFLOW_TRACKING_URI") or places.tracking_uri(),
        model=(env.get("STRIDE_MODEL") or "").strip() or None,
        models=tuple(pins),
        pins=pins,
        device=cast("Device", device),
        require_gpu=_flag(env, "STRIDE_REQUIRE_GPU"),
        poll_s=_seconds(env, "STRIDE_POLL_SECONDS", 2.0),
        queue_rows=_count(env, "STRIDE_QUEUE_ROWS", 1024),
        deadline_s=_seconds(env, "STRIDE_DEADLINE_SECONDS", 5.0),
        body_s=_seconds(env, "STRIDE_BODY_SECONDS", 30.0),
        keep_alive_s=_seconds(env, "STRIDE_KEEP_ALIVE_SECONDS", 75.0),
        grace_s=_seconds(env, "STRIDE_GRACE_SECONDS", 8.0),
        max_bytes=_count(env, "STRIDE_MAX_BYTES", 32 * 1024 * 1024),
        max_inflight_bytes=_count(env, "STRIDE_MAX_INFLIGHT_BYTES", 256 * 1024 * 1024),
        max_pixels=_count(env, "STRIDE_MAX_PIXELS", MAX_PIXELS),
        max_parts=_count(env, "STRIDE_MAX_PARTS", 64),
        max_batch=_count(env, "STRIDE_MAX_BATCH", 64, most=4096),
        workers=_count(env, "STRIDE_WORKERS", 1, most=256),
        threads=_count(env, "STRIDE_THREADS", 0, least=0, most=1024),
        api_keys_file=_path(env, "STRIDE_API_KEYS_FILE"),
        metrics_keys_file=_path(env, "STRIDE_METRICS_KEYS_FILE"),
        prediction_log=_path(env, "STRIDE_PREDICTION_LOG"),
        prediction_log_sample=_part(env, "STRIDE_PREDICTION_LOG_SAMPLE", 0.1),
        prediction_log_pixels=_flag(env, "STRIDE_PREDICTION_LOG_PIXELS"),
        prediction_log_bytes=_count(env, "STRIDE_PREDICTION_LOG_BYTES", 1024**3, least=1024**2),
        drift_window=_count(env, "STRIDE_DRIFT_WINDOW", 2000, least=0, most=10**7),
    )


def _count(env: Mapping[str, str], name: str, default: int, *, least: int = 1, most: int = 2**40) -> int:
    text = env.get(name) or str(default)
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        raise RecipeError(f"{name} is {text!r}; set it to a whole number from {least} to {most}.")
    return value


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.01 <= value <= 3600:  # also refuses nan
        raise RecipeError(f"{name} is {text!r}; set it to a number of seconds from 0.01 to 3600.")
    return value


def _part(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:  # also refuses nan
        raise RecipeError(f"{name} is {text!r}; set it to a number from 0 to 1.")
    return value


def _path(env: Mapping[str, str], name: str) -> Path | None:
    return Path(text).absolute() if (text := env.get(name)) else None


def _flag(env: Mapping[str, str], name: str) -> bool:
    text = (env.get(name) or "0").lower()
    if text not in ("0", "1", "false", "true"):
        raise RecipeError(f"{name} is {text!r}; set it to 0 or 1.")
    return text in ("1", "true")
