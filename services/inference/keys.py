"""API keys from a file: who may ask. Without STRIDE_API_KEYS_FILE nobody is asked for one.

A line of the file is one key, or `sha256:` and the sha256 of one in hexadecimal digits, so that the file need not hold
the keys themselves; what follows a `#` is a comment. A key has 16 to 256 characters of A-Z a-z 0-9 - . _ ~ + / =.

    # openssl rand -hex 32
    9f2c41d7a0f0c1…            # the web shop
    sha256:5a08d3b1e6c24f…     # the nightly job

A client sends it as `Authorization: Bearer KEY` or `X-API-Key: KEY`. The file is read again once it changes; a change
that cannot be read leaves the former keys in force, and the log says so. Keys are kept and compared as digests, and
neither they nor what a client sent is ever logged or told.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from contracts.errors import RecipeError
from services.inference import logs, tracing
from services.inference.errors import Unauthorized

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

_KEY: Final = re.compile(r"[A-Za-z0-9._~+/-]{16,256}={0,2}")
_DIGEST: Final = re.compile(r"sha256:([0-9a-fA-F]{64})")
_LOOK_S: Final = 1.0
"""Between two looks at the file, and so the longest that a withdrawn key still works."""
_BEARER: Final = b"bearer "

Raw = Iterable[tuple[bytes, bytes]]


class Keys:
    """The keys of one file. Belongs to the event loop.

    Raises (from the constructor):
        RecipeError: the file cannot be read, holds a line that is no key, or holds no key at all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _state(path)
        self._digests = read(path)
        self._looked = time.monotonic()

    def check(self, headers: Raw) -> None:
        """Let the request pass, or raise.

        Raises:
            Unauthorized: no key is among the headers, or none that is known.
        """
        self._follow()
        given = _given(headers)
        if not given:
            raise Unauthorized("no API key was sent; send it as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'.")
        known = False
        for key in given:
            digest = sha256(key).digest()
            for one in self._digests:  # all of them: the time taken must not tell where the search ended
                known |= hmac.compare_digest(digest, one)
        if not known:
            raise Unauthorized("the API key is not known here; ask who runs the service for one.", given=True)

    def _follow(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked = now
        seen = _state(self._path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._digests = read(self._path)
        except RecipeError as error:
            logs.warning("keys_not_read", reason=error.message, keys=len(self._digests))
        else:
            logs.info("keys_read", keys=len(self._digests))


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


def read(path: Path) -> tuple[bytes, ...]:
    """The sha256 digests of the file's keys.

    Raises:
        RecipeError: one sentence that names the line, and never what stands in it.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeError(
            f"STRIDE_API_KEYS_FILE is {str(path)!r}, which cannot be read ({reason}); give a file of keys, or unset it."
        ) from error
    digests = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        if (hashed := _DIGEST.fullmatch(text)) is not None:
            digests.append(bytes.fromhex(hashed[1]))
        elif not text.startswith("sha256:") and _KEY.fullmatch(text):
            digests.append(sha256(text.encode()).digest())
        else:
            raise RecipeError(
                f"STRIDE_API_KEYS_FILE: line {number} of {str(path)!r} is no key; write one key of 16 to 256 letters, "
                "digits and -._~+/=, or sha256: and 64 hexadecimal digits."
            )
    if not digests:
        raise RecipeError(f"STRIDE_API_KEYS_FILE: {str(path)!r} holds no key; write one a line, or unset it.")
    return tuple(dict.fromkeys(digests))


def _given(headers: Raw) -> list[bytes]:
    given = []
    for name, value in headers:
        if name == b"x-api-key":
            given.append(value.strip())
        elif name == b"authorization" and value[:7].lower() == _BEARER:
            given.append(value[7:].strip())
    # More than the two that are documented would be guessing at our cost.
    return given[:2]


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None when it is not there."""
    try:
        found = path.stat()  # of what a link leads to: a mounted secret is changed by changing a link
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
