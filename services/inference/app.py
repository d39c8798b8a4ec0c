"""The ASGI application: addresses, methods, headers and errors; the work is done by the modules beside it.

It is a Starlette application to BentoML, which mounts it and runs its lifespan, but dispatches by itself: Starlette's
routing, request and response objects would cost more than a small network's inference.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match

from contracts.errors import NotFound, StrideError
from services.inference import logs, metrics, openapi, provider, settings
from services.inference.errors import InferenceFailed, MethodNotAllowed
from services.inference.metrics import Metrics
from services.inference.models import Models
from services.inference.predict import ClientGone, Predictor, Receive, Scope
from services.inference.problems import Headers, problem
from services.inference.watcher import Watcher

Send = Callable[[dict[str, Any]], Awaitable[None]]
Answer = tuple[bytes, bytes, Headers]
"""Body, media type, further headers."""

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_LAME_DUCK_S: Final = 0.3
"""After SIGTERM, how long requests are still taken, each connection being closed with its answer: a request that is
already on its way to a connection that is being closed would be lost."""
_RESTORE_S: Final = 30.0
"""How long a start waits for the stored models; from then on it says by itself that it is not ready."""
_PAGE_POLICY: Final = (
    b"default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; "
    b"img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)


class _Ours(BaseRoute):
    """Everything that BentoML does not answer itself. (Its own routes for health stand before the mount.)"""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        theirs = scope["path"] == "/docs.json" or scope["path"].startswith("/static_content/")
        return (Match.NONE if theirs else Match.FULL), {}


class Application(Starlette):
    """One worker's application. The environment is read when it starts, not when it is made."""

    def __init__(self) -> None:
        super().__init__(routes=[_Ours()], lifespan=_lifespan)
        self.models: Models
        self.metrics: Metrics
        self.predictor: Predictor
        self.draining = False
        self._first_in_line = False
        self._get: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/": partial(_file, "page.html", b"text/html; charset=utf-8"),
            "/docs": partial(_file, "docs.html", b"text/html; charset=utf-8"),
            "/openapi.json": self._openapi,
            "/v1/models": self._models,
            "/metrics": _metrics,
        }

    def why_not_ready(self) -> str | None:
        """Why predictions cannot be answered now; None when the default model has answered its golden images."""
        if self.draining:
            return "the service is ending"
        try:
            self.models.get()
        except StrideError as error:
            return error.message
        return None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()  # the handshake; without an answer the client would wait for ever
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return None
        if scope["type"] != "http":
            return await super().__call__(scope, receive, send)
        if not self._first_in_line:
            self._go_first(scope.get("app"))
        path: str = scope["path"]
        if path == "/v1/predict":
            return await self._predict(scope, receive, send, None)
        if path.startswith("/v1/models/") and path.endswith("/predict") and path.count("/") == 4:
            return await self._predict(scope, receive, send, path[11:-8])
        return await self._show(scope, send, path)

    def _go_first(self, host: Any) -> None:
        """Answer /v1/ in front of BentoML's middleware, once the first request has shown which application hosts us.

        The host's stack (context, tracing, a timer of 60 s for every request) has no part in our routes, and the
        timers would hold on to a minute's worth of requests. Measured: 0.52 -> 0.44 ms of CPU a prediction. Where a
        later BentoML is built otherwise, requests simply keep coming through it.
        """
        self._first_in_line = True
        behind = getattr(host, "middleware_stack", None)
        if host is self or behind is None:
            return

        async def front(scope: Scope, receive: Any, send: Any) -> None:
            ours = scope["type"] == "http" and scope["path"].startswith("/v1/")
            await (self if ours else behind)(scope, receive, send)

        host.middleware_stack = front

    async def _predict(self, scope: Scope, receive: Receive, send: Send, name: str | None) -> None:
        request_id = _request_id(scope)
        in_flight = self.metrics.in_flight
        in_flight.inc()
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{scope['method']} {scope['path']} is not known; use POST.", allow="POST")
            body, model = await self.predictor.predict(scope, receive, name)
        except StrideError as error:
            await self._refuse(scope, send, "predict", error, request_id)
        except ClientGone:
            self.metrics.errors.labels("client_gone").inc()
        except Exception as error:  # noqa: BLE001 - our own fault, whatever it is
            await self._refuse(scope, send, "predict", _failed(error, request_id), request_id)
        else:
            self.metrics.requests.labels("predict", "2xx").inc()
            headers = [
                (b"content-type", b"application/json"),
                (b"x-stride-provider", model.engine.provider.name.encode()),
                (b"x-stride-version", model.version.encode()),
            ]
            await self._send(send, 200, body, headers, request_id)
        finally:
            in_flight.dec()

    async def _show(self, scope: Scope, send: Send, path: str) -> None:
        """The routes that only show something."""
        request_id = _request_id(scope)
        route = "other"
        try:
            if (show := self._get.get(path)) is None:
                raise NotFound(f"nothing stands at {path[:200]!r}; GET /docs lists what does.")
            route = path
            if scope["method"] not in ("GET", "HEAD"):
                raise MethodNotAllowed(f"{scope['method']} {path} is not known; use GET.", allow="GET, HEAD")
            body, media_type, headers = await show()
        except StrideError as error:
            return await self._refuse(scope, send, route, error, request_id)
        except Exception as error:  # noqa: BLE001 - as above
            return await self._refuse(scope, send, route, _failed(error, request_id), request_id)
        self.metrics.requests.labels(route, "2xx").inc()
        headers = [(b"content-type", media_type), *headers]
        return await self._send(send, 200, body, headers, request_id, head=scope["method"] == "HEAD")

    async def _refuse(self, scope: Scope, send: Send, route: str, error: StrideError, request_id: bytes) -> None:
        status, body, headers = problem(error)
        self.metrics.errors.labels(error.code).inc()
        self.metrics.requests.labels(route, f"{status // 100}xx").inc()
        # What has not been read of the body must not be taken for the next request, nor be waited for. Elsewhere the
        # server reads past it, but a client that was refused before its "100 Continue" need not send it at all.
        unread = status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if unread or any(key == b"expect" for key, _ in scope["headers"]):
            headers.append((b"connection", b"close"))
        await self._send(send, status, body, headers, request_id, head=scope["method"] == "HEAD")

    async def _send(
        self, send: Send, status: int, body: bytes, headers: Headers, request_id: bytes, *, head: bool = False
    ) -> None:
        headers += [(b"content-length", b"%d" % len(body)), (b"x-request-id", request_id)]
        if self.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if head else body})

    async def _models(self) -> Answer:
        return json.dumps(self.models.describe()).encode(), b"application/json", []

    async def _openapi(self) -> Answer:
        return json.dumps(openapi.document()).encode(), b"application/json", []


@contextlib.asynccontextmanager
async def _lifespan(app: Application) -> AsyncIterator[None]:
    logs.configure()
    read = settings.read()
    app.metrics = Metrics()
    app.models = Models(default=read.model, metrics=app.metrics)
    threads = read.threads or provider.threads(read.workers)
    app.predictor = Predictor(read, app.models, app.metrics, decoders=threads)
    watcher = Watcher(read, app.models, app.metrics, asyncio.get_running_loop())
    watcher.start()
    _drain_at_sigterm(app, read)
    logs.info("started", pid=os.getpid(), threads=threads, registry=read.tracking_uri, home=str(read.home))
    # The workers share one socket: one that takes connections before it has a model answers 503 beside a ready one.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(watcher.restored.wait(), _RESTORE_S)
    try:
        yield
    finally:
        watcher.stop()
        await app.models.drain()
        app.predictor.close()
        logs.info("stopped", pid=os.getpid())


def _drain_at_sigterm(app: Application, read: settings.Settings) -> None:
    """Put a short time before the server's own ending, in which every connection ends with an answer."""
    loop = asyncio.get_running_loop()
    servers_own = signal.getsignal(signal.SIGTERM)
    if not callable(servers_own):  # not run by a server (in a test), so there is nothing to put before
        return

    def drain(number: int, frame: Any) -> None:
        if app.draining:
            return
        app.draining = True
        logs.info("draining", grace_seconds=read.grace_s)
        loop.call_soon_threadsafe(app.predictor.cut_bodies, max(0.0, read.grace_s - read.deadline_s - _LAME_DUCK_S))
        loop.call_soon_threadsafe(loop.call_later, _LAME_DUCK_S, servers_own, number, frame)

    signal.signal(signal.SIGTERM, drain)


async def _file(name: str, media_type: bytes) -> Answer:
    body = await asyncio.to_thread((Path(__file__).parent / name).read_bytes)
    return body, media_type, [(b"content-security-policy", _PAGE_POLICY), (b"x-content-type-options", b"nosniff")]


async def _metrics() -> Answer:
    body, media_type = await asyncio.to_thread(metrics.expose)
    return body, media_type.encode(), []


def _failed(error: Exception, request_id: bytes) -> InferenceFailed:
    """What is told of an error that is our own fault; the log has it whole."""
    logs.failure("request_failed", error, request_id=request_id.decode())
    return InferenceFailed("the server failed on this request; its log says why.")


def _request_id(scope: Scope) -> bytes:
    """The client's X-Request-ID where it is harmless, else a new one."""
    for key, value in scope["headers"]:
        if key == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value)
    return os.urandom(8).hex().encode()
