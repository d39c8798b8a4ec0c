"""The ASGI application: addresses, methods, headers and errors; the work is done by the modules beside it.

It is a Starlette application to BentoML, which mounts it and runs its lifespan, but dispatches by itself: Starlette's
routing, request and response objects would cost more than a small network's inference.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from starlette.applications import Starlette
from starlette.routing import BaseRoute, Match

from contracts.errors import MethodNotAllowed, NotFound, Overloaded, SlowBody, StrideError, TooLarge, Unauthorized
from services.inference import exposition, ids, keys, logs, openapi, tracing
from services.inference.bento import Parts
from services.inference.bodies import ClientGone, Receive, Scope
from services.inference.errors import BodiesFull
from services.inference.formats import Files, Format
from services.inference.keys import Keys
from services.inference.lifespan import lifespan
from services.inference.metrics import Metrics
from services.inference.models import Models
from services.inference.pages import page
from services.inference.predict import Predictor
from services.inference.problems import Headers, problem
from services.inference.tracing import Tracer
from services.inference.v2 import routes as v2

Send = Callable[[dict[str, Any]], Awaitable[None]]
Answer = tuple[bytes, bytes, Headers]
"""Body, media type, further headers."""

_HOSTED: Final = frozenset({"/livez", "/healthz", "/readyz", "/schema.json"})
"""Answered by BentoML where the method is right."""


class _Ours(BaseRoute):
    """Everything that BentoML does not answer itself. (Its own routes for health stand before the mount.)"""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.NONE if scope["path"].startswith("/static_content/") else Match.FULL), {}


class Application(Starlette):
    """One worker's application. The environment is read when it starts, not when it is made."""

    def __init__(self) -> None:
        super().__init__(routes=[_Ours()], lifespan=lifespan)
        self.models: Models
        self.metrics: Metrics
        self.predictor: Predictor
        self.keys: Keys | None = None
        self.tracer: Tracer | None = None
        self.draining = False
        self._first_in_line = False
        self._get: dict[str, Callable[[], Awaitable[Answer]]] = {
            "/": partial(page, "page.html"),
            "/docs": partial(page, "docs.html"),
            "/openapi.json": self._openapi,
            "/docs.json": self._openapi,
            "/v1/models": self._models,
            "/metrics": self._exposed,
        }

    def why_not_ready(self) -> str | None:
        """Why predictions cannot be answered now; None when the default model has answered its golden images.

        It is told to who carries no key, so where keys are asked for it names no more than where the reason stands.
        """
        if self.draining:
            return "the service is ending"
        try:
            self.models.get()
        except StrideError as error:
            return error.message if self.keys is None else "GET /v1/models says why to who has a key"
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
        if self.tracer is not None:
            return await self._traced(self.tracer, scope, receive, send)
        trace = None
        for key, _ in scope["headers"]:
            if key == b"traceparent":
                trace = tracing.joined(scope["headers"])
        # A pipelined request begins in the context of the one before it.
        if trace is not None or tracing.current.get() is not None:
            tracing.join(trace)
        return await self._route(scope, receive, send)

    async def _traced(self, tracer: Tracer, scope: Scope, receive: Any, send: Any) -> None:
        started = time.perf_counter()
        trace = tracer.begin(scope["headers"])
        tracing.join(trace)
        try:
            await self._route(scope, receive, send)
        finally:
            if scope["method"] == "POST":
                tracer.end(trace, scope["method"], scope["path"], started)

    async def _route(self, scope: Scope, receive: Any, send: Any) -> None:
        if self.keys is not None and not await self.allow(scope, send):
            return None
        path: str = scope["path"]
        form: Format
        if path == "/v1/predict":
            form = Files(None, scope["query_string"])
        elif path.startswith("/v1/models/") and path.endswith("/predict") and path.count("/") == 4:
            form = Files(path[11:-8], scope["query_string"])
        elif path == "/predict":
            form = Parts(scope["query_string"])
        elif (address := v2.find(path)) is None:
            return await self._show(scope, send, path, self._get.get(path))
        elif address.action == v2.INFER:
            return await self._predict(scope, receive, send, address.form(scope["headers"]), v2.INFER)
        else:
            return await self._show(scope, send, address.action, partial(self._describe, address))
        return await self._predict(scope, receive, send, form)

    async def allow(self, scope: Scope, send: Send) -> bool:
        """Whether the request may go on; if not it is answered, before its body is read."""
        if self.keys is None or scope["path"] in keys.OPEN:
            return True
        try:
            self.keys.check(scope["headers"], scope["path"])
        except Unauthorized as error:
            await self._refuse(scope, send, "other", error, _request_id(scope))
            return False
        return True

    def _go_first(self, host: Any) -> None:
        """Answer what is ours in front of BentoML's middleware, once a request has shown which application hosts us.

        The host's stack (context, tracing, a timer of 60 s for every request) has no part in our routes, and the
        timers would hold on to a minute's worth of requests. Measured: 0.52 -> 0.44 ms of CPU a prediction. Where a
        later BentoML is built otherwise, requests simply keep coming through it.
        """
        self._first_in_line = True
        behind = getattr(host, "middleware_stack", None)
        if host is self or behind is None:
            return

        async def front(scope: Scope, receive: Any, send: Any) -> None:
            await (self if is_ours(scope) else behind)(scope, receive, send)

        host.middleware_stack = front

    async def _predict(self, scope: Scope, receive: Receive, send: Send, form: Format, route: str = "predict") -> None:
        request_id = _request_id(scope)
        in_flight = self.metrics.in_flight
        in_flight.inc()
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{scope['method']} {scope['path']} is not known; use POST.", allow="POST")
            body, model = await self.predictor.predict(scope, receive, form)
        except StrideError as error:
            await self._refuse(scope, send, route, error, request_id)
        except ClientGone:
            self.metrics.errors.labels("client_gone").inc()
        except Exception as error:  # noqa: BLE001 - our own fault, whatever it is
            await self._refuse(scope, send, route, _failed(error, request_id), request_id)
        else:
            self.metrics.requests.labels(route, "2xx").inc()
            await self._send(send, 200, body, [*form.headers, *model.headers], request_id)
        finally:
            in_flight.dec()

    async def _show(self, scope: Scope, send: Send, route: str, show: Callable[[], Awaitable[Answer]] | None) -> None:
        """The routes that only show something; `show` is None where nothing stands."""
        request_id = _request_id(scope)
        path = scope["path"][:200]
        try:
            if show is None:
                route = "other"
                if path in _HOSTED:
                    raise MethodNotAllowed(f"{scope['method']} {path} is not known; use GET.", allow="GET, HEAD")
                raise NotFound(f"nothing stands at {path!r}; GET /docs lists what does.")
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
        status, body, headers = problem(error, bare=v2.is_ours(scope["path"]))
        if (trace := tracing.current.get()) is not None:
            trace.code = error.code
        self.metrics.refused(route, status, error.code, error.reason if isinstance(error, Overloaded) else None)
        # What has not been read of the body must not be taken for the next request, nor be waited for. Elsewhere the
        # server reads past it, but a client that was refused before its "100 Continue" need not send it at all.
        if isinstance(error, SlowBody | TooLarge | BodiesFull) or any(key == b"expect" for key, _ in scope["headers"]):
            headers.append((b"connection", b"close"))
        await self._send(send, status, body, headers, request_id, head=scope["method"] == "HEAD")

    async def _send(
        self, send: Send, status: int, body: bytes, headers: Headers, request_id: bytes, *, head: bool = False
    ) -> None:
        headers += [(b"content-length", b"%d" % len(body)), (b"x-request-id", request_id)]
        if self.draining:
            headers.append((b"connection", b"close"))
        if (trace := tracing.current.get()) is not None:
            trace.status = status
            headers.append(trace.header())
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if head else body})

    async def _models(self) -> Answer:
        return json.dumps(self.models.describe()).encode(), b"application/json", []

    async def _exposed(self) -> Answer:
        self.metrics.publish()
        body, media_type = await asyncio.to_thread(exposition.expose, gpu=self.metrics.gpu)
        return body, media_type.encode(), []

    async def _describe(self, address: v2.Address) -> Answer:
        content = address.describe(self.models, self.why_not_ready())
        return json.dumps(content).encode(), b"application/json", []

    async def _openapi(self) -> Answer:
        return json.dumps(openapi.document()).encode(), b"application/json", []


class Front:
    """ASGI middleware of BentoML's: what is ours is answered here, before BentoML's own routes would read a body."""

    def __init__(self, app: Any, *, ours: Application) -> None:
        self._behind = app
        self._ours = ours

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        await (self._ours if is_ours(scope) else self._behind)(scope, receive, send)


def is_ours(scope: Scope) -> bool:
    """Whether this is a prediction or about models: nothing that BentoML has a part in."""
    if scope["type"] != "http":
        return False
    path: str = scope["path"]
    # The host's own routes end in `$`, which also fits before a newline: nothing like its /predict is left to it.
    return path.startswith(("/v1/", "/predict")) or v2.is_ours(path)


def _failed(error: Exception, request_id: bytes) -> StrideError:
    """What is told of an error that is our own fault; the log has it whole."""
    logs.failure("request_failed", error, request_id=request_id.decode())
    return StrideError("the server failed on this request; its log says why.")


def _request_id(scope: Scope) -> bytes:
    """Of the request; what is logged from here on has it."""
    request_id = ids.of(scope["headers"])
    logs.request_id.set(request_id.decode())
    return request_id
