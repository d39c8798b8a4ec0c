"""A store with jobs in it, a service around it, and a Ray that is a dictionary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.errors import RecipeError, RequestError
from services.training.jobs.app import build
from services.training.jobs.errors import RayError
from services.training.jobs.job import Job, Share, Work
from services.training.jobs.metrics import Metrics
from services.training.jobs.ray_jobs import Attempt, RayJobs
from services.training.jobs.request import JobRequest
from services.training.jobs.runner import Runner
from services.training.jobs.service import Service
from services.training.jobs.settings import Settings, read
from services.training.jobs.store import Store

MakeJob = Callable[..., Job]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "jobs")
    yield opened
    opened.close()


@pytest.fixture
def make_job(store: Store) -> MakeJob:
    """Queues a job whose command is `true`; keywords go to Store.create."""

    def make(command: tuple[str, ...] = ("/bin/true",), **given: Any) -> Job:
        work = Work(recipe="digits", model_name="digits", document="name: digits\n", command=command)
        options: dict[str, Any] = {"kind": "train", "share": Share(), "request": {}, "digest": "d", "key": None}
        job, _ = store.create(work=work, most_waiting=1000, **{**options, **given})
        return job

    return make


def resolve(request: JobRequest) -> Work:
    """Knows one recipe."""
    if request.recipe != "digits":
        raise RecipeError(f"recipe '{request.recipe}' is not known; did you mean 'digits'?")
    return Work(recipe="digits", model_name="digits", document="name: digits\n", command=("true",))


def share(request: JobRequest) -> Share:
    """Of a machine without a GPU."""
    if request.gpus:
        raise RequestError("gpus is 1; this machine has 0, ask for at most that many.")
    return Share()


async def tracked() -> str | None:
    return None


def service_of(store: Store, settings: Settings, **parts: Any) -> Service:
    """A service whose runner does not run; keywords take the place of `resolve` and `share`."""
    metrics = Metrics()
    runner = Runner(
        settings,
        store,
        head=None,
        at_once=1,
        environment={},
        connect=lambda address: RayJobs(address, "token"),
        metrics=metrics,
    )
    given: dict[str, Any] = {"resolve": resolve, "share": share, "tracking_problem": tracked, **parts}
    return Service(settings=settings, store=store, runner=runner, metrics=metrics, **given)


@pytest.fixture
def service(store: Store) -> Service:
    return service_of(store, read({"STRIDE_HOME": str(store.directory.parent), "RAY_ADDRESS": "http://127.0.0.1:9"}))


@dataclass
class FakeRay:
    """A cluster: what was submitted, and what it says of each."""

    address: str = "http://cluster"
    attempts: dict[str, Attempt] = field(default_factory=dict)
    environments: dict[str, Mapping[str, str]] = field(default_factory=dict)
    shares: dict[str, Share] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    away: bool = False
    broken: dict[str, Exception] = field(default_factory=dict)
    """What it raises when it is asked about these submissions."""

    def says(self, submission: str, status: Any, exit_code: int | None = None, reason: str | None = None) -> None:
        self.attempts[submission] = Attempt(status=status, exit_code=exit_code, reason=reason, message="")

    async def answers(self) -> None:
        self._check("")

    async def submit(self, submission: str, _: str, *, share: Share, environment: Mapping[str, str]) -> None:
        self._check(submission)
        self.environments[submission], self.shares[submission] = environment, share
        self.says(submission, "PENDING")

    async def find(self, submission: str) -> Attempt | None:
        if submission in self.attempts:
            self._check(submission)
        return self.attempts.get(submission)

    async def stop(self, submission: str) -> None:
        self._check("")
        self.stopped.append(submission)

    async def close(self) -> None:
        pass

    def _check(self, submission: str) -> None:
        if self.away:
            raise RayError("Ray at http://cluster does not answer (refused); see whether it runs.")
        if submission in self.broken:
            raise self.broken[submission]


@dataclass
class FakeHead:
    """A Ray of our own, which outlives a runner that is killed."""

    ended: bool = False
    started: int = 0
    """How often."""

    def running(self) -> str | None:
        return None if self.ended else FakeRay.address

    async def start(self) -> str:
        self.ended, self.started = False, self.started + 1
        return FakeRay.address

    def end(self) -> None:
        self.ended = True


def make_runner(
    store: Store,
    ray: FakeRay,
    *,
    at_once: int = 1,
    head: FakeHead | None = None,
    patience_s: float = 60.0,
    **variables: str,
) -> Runner:
    environment = {"STRIDE_HOME": str(store.directory.parent), "RAY_ADDRESS": "http://cluster", **variables}

    def connect(_: str) -> RayJobs:
        return ray  # type: ignore[return-value] # the same methods

    return Runner(
        read(environment),
        store,
        head=head,  # type: ignore[arg-type] # the same methods
        at_once=at_once,
        environment={"STRIDE_HOME": "/home"},
        connect=connect,
        metrics=Metrics(),
        patience_s=patience_s,
    )


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def runner(store: Store, ray: FakeRay) -> Runner:
    return make_runner(store, ray)


def tick(runner: Runner, times: int = 1) -> None:
    async def ticks() -> None:
        for _ in range(times):
            await runner.tick()

    asyncio.run(ticks())


def now(store: Store, job: Job) -> Job:
    found = store.get(job.id)
    assert found is not None
    return found


def client_of(service: Service, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build(service), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", **options)


def run(service: Service, *asked: tuple[str, str, dict[str, Any]], **options: Any) -> list[httpx.Response]:
    """Sends requests one after the other: (method, path, keywords of httpx)."""

    async def send() -> list[httpx.Response]:
        async with client_of(service, **options) as client:
            return [await client.request(method, path, **given) for method, path, given in asked]

    return asyncio.run(send())


def post(**content: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/v1/jobs", {"json": {"kind": "train", "recipe": "digits", **content}}


def get(path: str, **given: Any) -> tuple[str, str, dict[str, Any]]:
    return "GET", path, given
