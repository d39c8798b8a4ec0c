"""What the routes of the training service work with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from services.training.jobs.job import Share, Work
from services.training.jobs.metrics import Metrics
from services.training.jobs.request import JobRequest
from services.training.jobs.runner import Runner
from services.training.jobs.settings import Settings
from services.training.jobs.store import Store


@dataclass(kw_only=True, slots=True)
class Service:
    """One service, put together by pipelines/training_service.py."""

    settings: Settings
    store: Store
    runner: Runner
    metrics: Metrics
    resolve: Callable[[JobRequest], Work]
    """Finds and validates the recipe; raises RecipeError as the command does."""
    share: Callable[[JobRequest], Share]
    """The part of a machine that the job gets; raises RequestError where there is no such part."""
    tracking_problem: Callable[[], Awaitable[str | None]]
    """Why the tracking server is of no use now; None where it is."""
    draining: bool = False
    """The service is being stopped: no new jobs, and streams end."""
    followers: int = 0
    """Logs that are followed now."""
    told: dict[str, str] = field(default_factory=dict)
    """What the log was told last of what keeps the service from being ready."""
