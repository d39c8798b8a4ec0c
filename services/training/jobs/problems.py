"""Errors as RFC 9457 problem details: one JSON object with type, title, status, detail and code.

A code never changes its meaning; these are all:

| code | status | when | what to do |
|---|---|---|---|
| malformed_body | 400 | the body is not JSON | let a library build it |
| unauthorized | 401 | API keys are asked for, and none that is known was sent | send one |
| not_found | 404 | nothing stands at the address, or no job has the id | see /docs and /v1/jobs |
| method_not_allowed | 405 | the address has another method | see the header Allow |
| slow_body | 408 | the body did not arrive in time | send it faster |
| idempotency_key_reused | 409 | an Idempotency-Key came with another body before | send a new key |
| too_large | 413 | the body has more bytes than a job can need | send less |
| not_json | 415 | the Content-Type is not application/json | set it |
| misdirected_request | 421 | the Host header is not this service's | ask it by its own address |
| invalid_request | 422 | a key of the body or a parameter is wrong | see /docs |
| invalid_recipe | 422 | the recipe is not known or not valid; the same sentence as the command's | follow it |
| overloaded | 429 | the queue is full, or too many logs are followed | come again after Retry-After |
| internal_error | 500 | our own fault | look for the X-Request-ID in the log |
| ending | 503 | the service is being stopped | come again after Retry-After |
| ray_unavailable | 503 | no Ray that can be used | see /readyz |
| registry_unavailable | 503 | the tracking server is away | see /readyz |
| store_unavailable | 503 | the data base of jobs cannot be used | see the disk |
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Final

from starlette.responses import JSONResponse

from contracts.errors import MethodNotAllowed, Overloaded, StrideError, Unauthorized

MEDIA_TYPE: Final = "application/problem+json"


def problem(error: StrideError) -> JSONResponse:
    """The response that tells of an error."""
    content = {
        "type": f"urn:stride:error:{error.code}",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
    }
    headers: dict[str, str] = {}
    if isinstance(error, Overloaded):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    elif error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "2"
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = error.allow
    if isinstance(error, Unauthorized):
        # RFC 6750: who sent no key is told how, who sent a wrong one that it is wrong.
        headers["WWW-Authenticate"] = 'Bearer realm="stride"' + ', error="invalid_token"' * error.given
    return JSONResponse(content, status_code=error.status, headers=headers, media_type=MEDIA_TYPE)
