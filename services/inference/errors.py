"""What only a server can meet, beside the errors of contracts.errors.

StrideError
├── RequestError
│   ├── MalformedBody        a body that does not follow its own Content-Type
│   ├── MethodNotAllowed     the address is known, the method is not
│   └── SlowBody             the body did not arrive in time
└── InferenceFailed          the runtime failed on an image that was fine
"""

from __future__ import annotations

from contracts.errors import RequestError, StrideError


class MalformedBody(RequestError):
    status, code = 400, "malformed_body"


class MethodNotAllowed(RequestError):
    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class SlowBody(RequestError):
    status, code = 408, "slow_body"


class InferenceFailed(StrideError):
    code = "inference_failed"
