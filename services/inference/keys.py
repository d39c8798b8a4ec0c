"""API keys from a file: who may ask. Without STRIDE_API_KEYS_FILE nobody is asked for one.

    # openssl rand -hex 32
    9f2c41d7a0f0c1…            # the web shop
    sha256:5a08d3b1e6c24f…     # the nightly job

What a file may hold, and how a key is sent, stands in contracts/api_keys.py. The file is read again once it changes; a
change that cannot be read leaves the former keys in force, and the log says so.

The keys of a second file, STRIDE_METRICS_KEYS_FILE, open /metrics and nothing else: what Prometheus holds asks for no
prediction.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from contracts.api_keys import NOT_KNOWN, NOT_SENT, Headers, KeyFile
from contracts.errors import RecipeError, Unauthorized
from services.inference import logs, tracing

OPEN: Final = frozenset(
    {
        # Probes carry no key, and these say no more than yes or no.
        *("/livez", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"),
        # The same for everybody; a browser cannot send a key for a page. The page asks for one when it needs it.
        *("/", "/docs", "/docs.json", "/openapi.json"),
        *("/static_content/swagger-ui.css", "/static_content/swagger-ui-bundle.js"),
    }
)
"""The paths that need no key, exactly as they are routed. All others do, whoever answers them; so does /metrics."""

_LOOK_S: Final = 1.0


class Keys:
    """The keys of one file, and of a second one that is for /metrics alone. Belongs to the event loop.

    Raises (from the constructor):
        RecipeError: a file cannot be read, holds a line that is no key, or holds no key at all.
    """

    def __init__(self, path: Path, *, metrics: Path | None = None) -> None:
        self._file = KeyFile(path, variable="STRIDE_API_KEYS_FILE", changed=_tell, look_s=_LOOK_S)
        self._metrics = (
            KeyFile(metrics, variable="STRIDE_METRICS_KEYS_FILE", changed=_tell, look_s=_LOOK_S) if metrics else None
        )

    def check(self, headers: Headers, path: str = "") -> None:
        """Let the request for `path` pass, or raise.

        Raises:
            Unauthorized: no key is among the headers, or none that is known.
        """
        known = self._file.knows(headers)
        if not known and self._metrics is not None and path == "/metrics":
            known = self._metrics.knows(headers)
        if not known:
            raise Unauthorized(NOT_SENT if known is None else NOT_KNOWN, given=known is not None)


class Guard:
    """ASGI middleware for what stands in front of our routes: a request without a key goes no further.

    Args:
        app: what is behind it.
        allow: answers the request itself and says False when it must go no further.
    """

    def __init__(self, app: Any, *, allow: Callable[[Any, Any], Awaitable[bool]]) -> None:
        self._app = app
        self._allow = allow

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        tracing.join(None)  # a pipelined request begins in the context of the one before it
        if scope["type"] != "http" or await self._allow(scope, send):
            await self._app(scope, receive, send)


def _tell(keys: int, error: RecipeError | None) -> None:
    if error is not None:
        logs.warning("keys_not_read", reason=error.message, keys=keys)
    else:
        logs.info("keys_read", keys=keys)
