"""Errors as RFC 9457 problem details: one JSON object with type, title, status, detail and code.

The Open Inference Protocol has a form of its own, {"error": message}; there the code is in the metric stride_errors
alone. A code never changes its meaning; these are all:

| code | status | when | what to do |
|---|---|---|---|
| undecodable_image | 400 | an image is empty, truncated or corrupt | send a whole file |
| malformed_body | 400 | the body does not follow its Content-Type or Content-Encoding | let a library build it |
| invalid_tensor | 400 | a request of the Open Inference Protocol is not for this model | ask for its metadata |
| malformed_request | 400 | the request does not follow HTTP/1.1 | use an HTTP library |
| unauthorized | 401 | API keys are asked for, and none that is known was sent | send one, see keys.py |
| not_found | 404 | nothing stands at the address, or no model has the name | see /docs and /v1/models |
| method_not_allowed | 405 | the address has another method | see the header Allow |
| slow_body | 408 | the body did not arrive in time | send it faster |
| too_large | 413 | more bytes, pixels, parts or rows than the limit | send less at a time |
| not_an_image | 415 | the bytes are no still JPEG, PNG, WebP, BMP or GIF | send one of them |
| unknown_encoding | 415 | a Content-Encoding that is not unpacked | send gzip, deflate or none |
| invalid_request | 422 | a parameter, a header or the name of a part is wrong | see /docs |
| overloaded | 429 | too many wait already, or the deadline passed | come again after Retry-After |
| head_too_large | 431 | more or longer header fields than the limit | send fewer |
| internal_error | 500 | our own fault | look for the X-Request-ID in the log |
| inference_failed | 500 | the model failed on an image that was fine | look for the X-Request-ID in the log |
| no_model | 503 | no model can be served yet | come again after Retry-After |
| device_unavailable | 503 | the required GPU is not there | give the service one |
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Final

from contracts.errors import MethodNotAllowed, Overloaded, StrideError, Unauthorized

MEDIA_TYPE: Final = b"application/problem+json"
Headers = list[tuple[bytes, bytes]]


def problem(error: StrideError, *, bare: bool = False) -> tuple[int, bytes, Headers]:
    """The status, the body and the headers that tell of `error`; `bare` as the Open Inference Protocol has it."""
    title = HTTPStatus(error.status).phrase
    kind = f"urn:stride:error:{error.code}"
    content = {"type": kind, "title": title, "status": error.status, "detail": error.message, "code": error.code}
    if bare:
        content = {"error": error.message}
    headers: Headers = [(b"content-type", b"application/json" if bare else MEDIA_TYPE)]
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    elif error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.append((b"retry-after", b"2"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if isinstance(error, Unauthorized):
        # RFC 6750: who sent no key is told how, who sent a wrong one that it is wrong.
        headers.append((b"www-authenticate", b'Bearer realm="stride"' + b', error="invalid_token"' * error.given))
    return error.status, json.dumps(content).encode(), headers
