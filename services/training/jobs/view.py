"""Jobs as the API shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from services.training.jobs.job import Job, Kind, State


class Links(BaseModel):
    """Where more is to be found."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    self: str
    logs: str
    runs: list[str]
    """The pages of the MLflow runs; empty where MLflow is no server."""


class JobView(BaseModel):
    """One job."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    kind: Kind
    state: State
    """queued, running, succeeded, refused (the gate said no), failed (see error) or cancelled."""
    recipe: str
    model: str
    """The registered model, and MLflow's experiment."""
    created: datetime
    started: datetime | None
    ended: datetime | None
    attempts: int
    """How often it was begun; above 1 it went on from its checkpoint."""
    cancelling: bool
    """It was told to stop and has not ended yet."""
    gpus: float
    """GPUs, or the share of one, that are its alone while it runs."""
    error: str | None
    """Why it failed, or was refused, in one sentence."""
    result: dict[str, Any] | None
    """What the command answered with --json."""
    runs: list[str]
    """The ids of the MLflow runs that it opened."""
    request: dict[str, Any]
    """As it came in."""
    links: Links


class JobPage(BaseModel):
    """Some jobs, newest first."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    jobs: list[JobView]
    next: str | None
    """Give it as `after` for the next page; null on the last one."""


def view(job: Job, *, mlflow_ui: str | None) -> JobView:
    """A job; `mlflow_ui` is where a browser finds MLflow, None where there is no such server."""
    address = f"/v1/jobs/{job.id}"
    runs = [f"{mlflow_ui.rstrip('/')}/#/runs/{run}" for run in job.runs] if mlflow_ui else []
    return JobView(
        id=job.id,
        kind=job.kind,
        state=job.state,
        recipe=job.work.recipe,
        model=job.work.model_name,
        created=_time(job.created),
        started=_time(job.started) if job.started is not None else None,
        ended=_time(job.ended) if job.ended is not None else None,
        attempts=job.attempt,
        cancelling=job.cancelling,
        gpus=job.share.gpus,
        error=job.error,
        result=job.result,
        runs=list(job.runs),
        request=job.request,
        links=Links(self=address, logs=f"{address}/logs", runs=runs),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
