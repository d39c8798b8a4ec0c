"""/livez, /readyz, /metrics and /docs: how the service is, and what it can do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, Response

from contracts.errors import StrideError
from services.training.jobs import docs, log
from services.training.jobs.metrics import CONTENT_TYPE
from services.training.jobs.service import Service

_LOOK_S: Final = 5.0
_POLICY: Final = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}


def add_health(app: FastAPI, service: Service) -> None:
    """Add the routes to an application."""

    @app.get("/livez")
    async def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"description": "Not ready, and why"}})
    async def ready() -> JSONResponse:
        """Whether jobs can be begun: Ray answers, the data base takes jobs, tracking can be reached."""
        problems = await problems_of(service)
        if problems != service.told:  # once, not with every probe
            service.told = problems
            log.warning("not_ready", **problems) if problems else log.info("ready")
        # Who carries no key is told what is wrong, but not the addresses that the reasons name.
        shown = problems if service.settings.keys_file is None else dict.fromkeys(problems, "see the service's log")
        status = "not ready" if problems else "ready"
        return JSONResponse({"status": status, "problems": shown}, status_code=503 if problems else 200)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        ready = service.runner.problem is None and not service.draining
        content = await asyncio.to_thread(lambda: service.metrics.expose(service.store, ready=ready))
        return Response(content, media_type=CONTENT_TYPE)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(docs.page(app.openapi()), headers=_POLICY)


async def problems_of(service: Service) -> dict[str, str]:
    """What keeps jobs from being begun now, by the part that has the problem."""
    found = {
        "service": "it is being stopped" if service.draining else None,
        "ray": await _problem(service.runner.check()),
        "store": await _problem(asyncio.to_thread(service.store.check)),
        "tracking": await service.tracking_problem(),
    }
    return {part: problem for part, problem in found.items() if problem is not None}


async def _problem(check: Awaitable[None]) -> str | None:
    try:
        await asyncio.wait_for(check, _LOOK_S)
    except StrideError as error:
        return error.message
    except TimeoutError:
        return f"it does not answer within {_LOOK_S:g} s"
    return None
