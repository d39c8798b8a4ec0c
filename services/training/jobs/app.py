"""The HTTP API of the training service: thin routes over the store, and what they have in common."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from contracts.errors import MethodNotAllowed, NotFound, Overloaded, RequestError, SlowBody, StrideError
from services.training.jobs import log
from services.training.jobs.errors import BodyTooLarge, Ending, NotJson
from services.training.jobs.files import JobFiles
from services.training.jobs.follow import pieces
from services.training.jobs.front import Front
from services.training.jobs.health import add_health
from services.training.jobs.job import ENDED, Job, State
from services.training.jobs.problems import problem
from services.training.jobs.request import JobRequest, parse
from services.training.jobs.service import Service
from services.training.jobs.view import JobPage, JobView, view

MAX_BYTES: Final = 1_048_576
_BODY_S: Final = 30.0
_FOLLOWERS: Final = 64
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_DESCRIPTION: Final = """
Training as jobs: post a recipe, and it is fitted, or shipped to the registry, or searched for better settings, one job
after the other, with its log live and its run in MLflow. Jobs survive the service: those that run when it is stopped or
killed go on from their checkpoint when it is back.

Where API keys are asked for, send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`. Errors are
application/problem+json with a sentence in `detail` and a stable `code`.
"""
_EXAMPLES: Final = {
    "Fit a recipe with a change": {"value": {"kind": "train", "recipe": "digits", "set": {"fit.epochs": 3}}},
    "Fit, prove, gate and promote": {"value": {"kind": "ship", "recipe": "fashion"}},
    "Search": {
        "value": {"kind": "sweep", "recipe": "digits", "trials": 20, "space": {"optimizer.lr": "loguniform(1e-4,1e-1)"}}
    },
}


def build(service: Service) -> ASGIApp:
    """The application; its lifespan runs the jobs."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(service.runner.run())
        log.info("started", host=service.settings.host, port=service.settings.port, home=str(service.settings.home))
        try:
            yield
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            await service.runner.end()
            service.store.close()
            log.info("stopped")

    app = FastAPI(
        title="Stride: training jobs",
        description=_DESCRIPTION,
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    _add_jobs(app, service)
    add_health(app, service)
    _add_errors(app)
    return Front(app, service.settings, service.metrics)


def _add_jobs(app: FastAPI, service: Service) -> None:  # noqa: C901 - the routes stand side by side
    ui = service.settings.mlflow_ui

    @app.post(
        "/v1/jobs",
        status_code=201,
        response_model=JobView,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": JobRequest.model_json_schema(), "examples": _EXAMPLES}},
            }
        },
    )
    async def submit(
        request: Request,
        response: Response,
        idempotency_key: Annotated[
            str | None, Header(description="The same key with the same body gives the same job, however often.")
        ] = None,
    ) -> JobView:
        """Queue a job."""
        if service.draining:
            raise Ending("the training service is being stopped; post the job again when it is back.")
        if idempotency_key is not None and not _KEY.fullmatch(idempotency_key):
            raise RequestError(
                f"Idempotency-Key is {idempotency_key!r:.80}; use 1 to 255 visible ASCII characters without spaces."
            )
        wanted = parse(await _body(request))
        work, share = await asyncio.to_thread(service.resolve, wanted), service.share(wanted)
        job, new = await asyncio.to_thread(
            lambda: service.store.create(
                kind=wanted.kind,
                work=work,
                share=share,
                request=wanted.model_dump(mode="json", exclude_defaults=True),
                digest=wanted.digest(),
                key=idempotency_key,
                most_waiting=service.settings.queued,
            )
        )
        if new:
            log.info("job_queued", job=job.id, kind=job.kind, recipe=job.work.recipe)
            service.runner.wake()
        else:
            response.headers["Idempotent-Replayed"] = "true"
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return view(job, mlflow_ui=ui)

    @app.get("/v1/jobs", response_model=JobPage)
    async def jobs(
        state: Annotated[State | None, Query(description="Only jobs in this state.")] = None,
        limit: Annotated[int, Query(ge=1, le=200, description="Most jobs of the page.")] = 50,
        after: Annotated[str | None, Query(description="`next` of the page before.", pattern=r"^\d{1,18}$")] = None,
    ) -> JobPage:
        """List jobs, newest first."""
        before = int(after) if after is not None else None
        found = await asyncio.to_thread(lambda: service.store.page(state=state, before=before, limit=limit + 1))
        shown = found[:limit]
        following = str(shown[-1].sequence) if len(found) > limit else None
        return JobPage(jobs=[view(job, mlflow_ui=ui) for job in shown], next=following)

    @app.get("/v1/jobs/{job_id}", response_model=JobView)
    async def show(job_id: str) -> JobView:
        """Show a job."""
        return view(await _find(service, job_id), mlflow_ui=ui)

    @app.delete("/v1/jobs/{job_id}", response_model=JobView, responses={202: {"description": "It is being stopped"}})
    async def cancel(job_id: str, response: Response) -> JobView:
        """Cancel a job; one that runs gets SIGTERM, saves its checkpoint and ends soon. Any number of times."""
        await _find(service, job_id)
        if await asyncio.to_thread(service.store.cancel, job_id):
            job = await _find(service, job_id)
            service.metrics.ended.labels(job.kind, "cancelled").inc()
            log.info("job_ended", job=job.id, state="cancelled")
        else:
            job = await _find(service, job_id)
            service.runner.wake()
        if job.state not in ENDED:
            response.status_code = 202
        return view(job, mlflow_ui=ui)

    @app.get("/v1/jobs/{job_id}/logs", response_class=Response)
    async def logs(
        request: Request,
        job_id: str,
        follow: Annotated[bool, Query(description="1: go on until the job has ended.")] = False,
        offset: Annotated[int, Query(ge=0, le=2**53, description="Begin at this byte.")] = 0,
    ) -> Response:
        """Show a job's log, as it stands or live."""
        await _find(service, job_id)
        if follow and service.followers >= _FOLLOWERS:
            raise Overloaded(f"{_FOLLOWERS} logs are followed already; come again later.", retry_after_s=10)
        return StreamingResponse(
            _log(service, request, job_id, follow=follow, start=offset),
            media_type="text/plain; charset=utf-8",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},  # a proxy must not hold a live log back
        )


async def _log(service: Service, request: Request, job_id: str, *, follow: bool, start: int) -> AsyncIterator[bytes]:
    async def more() -> bool:
        if not follow or service.draining or await request.is_disconnected():
            return False
        job = await asyncio.to_thread(service.store.get, job_id)
        return job is not None and job.state not in ENDED

    path = JobFiles(service.settings.jobs, job_id).log
    service.followers += follow
    try:
        async for piece in pieces(path, start=start, more=more):
            yield piece
    finally:
        service.followers -= follow


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(StrideError)
    async def stride(_: Request, error: StrideError) -> Response:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def parameter(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name, message = first["loc"][-1], first["msg"]
        return problem(RequestError(f"{name} is {first['input']!r:.80}; {message[0].lower()}{message[1:]}."))

    @app.exception_handler(HTTPException)
    async def routing(request: Request, error: HTTPException) -> Response:
        where = f"{request.method} {request.url.path[:200]}"
        if error.status_code == 405:
            allowed = (error.headers or {}).get("allow") or (error.headers or {}).get("Allow") or ""
            told = f"{where} is not known; use {allowed or 'another method'}."
            return problem(MethodNotAllowed(told, allow=allowed))
        return problem(NotFound(f"nothing stands at {request.url.path[:200]!r}; GET /docs lists what does."))

    @app.exception_handler(Exception)
    async def ours(_: Request, error: Exception) -> Response:
        log.failure("request_failed", error)
        return problem(StrideError(f"the request failed for a reason of our own; the log has {log.request_id.get()}."))


async def _find(service: Service, job_id: str) -> Job:
    job = await asyncio.to_thread(service.store.get, job_id)
    if job is None:
        raise NotFound(f"job {job_id[:80]!r} is not known; GET /v1/jobs lists those that are.")
    return job


async def _body(request: Request) -> bytes:
    """The whole body of a request that says that it is JSON.

    Raises:
        NotJson, BodyTooLarge, SlowBody.
    """
    kind = request.headers.get("content-type", "")
    # Also because a browser sends no JSON to another site without asking it first: no page of the web can post a job.
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise NotJson(f"Content-Type is {kind!r:.80}; send JSON, and application/json here.")
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise BodyTooLarge(f"the body has more than {MAX_BYTES:,} bytes; a recipe needs some thousand.")
    except TimeoutError as error:
        raise SlowBody("the body did not arrive in time; send it faster.") from error
    return bytes(body)
