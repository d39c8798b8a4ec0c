"""What every request passes before it is routed: its id, the Host header, the key; and what every answer gets.

ASGI middleware, so that a stream of a log passes through it piece by piece.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contracts.api_keys import NOT_KNOWN, NOT_SENT, KeyFile
from contracts.errors import RecipeError, StrideError, Unauthorized
from services.training.jobs import log
from services.training.jobs.errors import Misdirected
from services.training.jobs.metrics import Metrics
from services.training.jobs.problems import problem
from services.training.jobs.settings import Settings

OPEN: Final = frozenset({"/livez", "/readyz", "/docs", "/openapi.json"})
"""The paths that need no key: probes carry none, and the documentation is the same for everybody."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LOCAL: Final = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?")


class Front:
    """Stands in front of an application.

    Args:
        app: What is behind it.
        settings: Of the service.
        metrics: Counts the requests.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._keys = (
            KeyFile(settings.keys_file, variable="STRIDE_JOBS_KEYS_FILE", changed=_tell)
            if settings.keys_file is not None
            else None
        )
        # What Prometheus holds submits no job.
        self._metrics_keys = (
            KeyFile(settings.metrics_keys_file, variable="STRIDE_METRICS_KEYS_FILE", changed=_tell)
            if settings.metrics_keys_file is not None
            else None
        )
        # A page of the web can have its own name lead here (DNS rebinding); its requests name that in Host. Where keys
        # are asked for it has none, and elsewhere than on loopback something else stands in front.
        self._local_only = settings.loopback and self._keys is None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        given = dict(headers).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        token = log.request_id.set(request_id)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(scope, message["status"])
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            try:
                self._let_in(scope["path"], headers)
            except StrideError as error:
                await problem(error)(scope, receive, answer)
                return
            await self._app(scope, receive, answer)
        finally:
            log.request_id.reset(token)

    def _let_in(self, path: str, headers: list[tuple[bytes, bytes]]) -> None:
        if self._local_only:
            host = dict(headers).get(b"host", b"").decode("latin-1")
            if not _LOCAL.fullmatch(host):
                raise Misdirected(f"Host is {host!r:.80}; ask this service by 127.0.0.1 or localhost.")
        if self._keys is None or path in OPEN:
            return
        known = self._keys.knows(headers)
        if not known and self._metrics_keys is not None and path == "/metrics":
            known = self._metrics_keys.knows(headers)
        if not known:
            raise Unauthorized(NOT_SENT if known is None else NOT_KNOWN, given=known is not None)

    def _count(self, scope: Scope, status: int) -> None:
        route: Any = scope.get("route")
        label = getattr(route, "path", "other")
        self._metrics.requests.labels(label, f"{status // 100}xx").inc()


def _tell(keys: int, error: RecipeError | None) -> None:
    if error is not None:
        log.warning("keys_not_read", reason=error.message, keys=keys)
    else:
        log.info("keys_read", keys=keys)
