"""Errors as RFC 9457 problem details: one JSON object with type, title, status, detail and code."""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Final

from contracts.errors import Overloaded, StrideError
from services.inference.errors import MethodNotAllowed

MEDIA_TYPE: Final = b"application/problem+json"
Headers = list[tuple[bytes, bytes]]


def problem(error: StrideError) -> tuple[int, bytes, Headers]:
    """The status, the body and the headers that tell of `error`."""
    title = HTTPStatus(error.status).phrase
    kind = f"urn:stride:error:{error.code}"
    content = {"type": kind, "title": title, "status": error.status, "detail": error.message, "code": error.code}
    headers: Headers = [(b"content-type", MEDIA_TYPE)]
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    elif error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", b"2"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    return error.status, json.dumps(content).encode(), headers
