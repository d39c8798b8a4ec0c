"""What only the training service can meet, beside the errors of contracts.errors.

StrideError
├── RequestError
│   ├── MalformedBody        a body that is not JSON
│   ├── KeyReused            an Idempotency-Key that came with another body before
│   ├── MethodNotAllowed     the address is known, the method is not
│   ├── Misdirected          a Host header that is not this service's
│   ├── NotJson              a body of another Content-Type
│   ├── SlowBody             the body did not arrive in time
│   ├── BodyTooLarge         more bytes than a job can need
│   └── Unauthorized         no API key, or none that is known, where one is asked for
├── Ending                   the service is being stopped
├── RayError                 no Ray that can be used
└── StoreError               the data base of jobs cannot be used
"""

from __future__ import annotations

from contracts.errors import RequestError, StrideError


class MalformedBody(RequestError):
    status, code = 400, "malformed_body"


class KeyReused(RequestError):
    status, code = 409, "idempotency_key_reused"


class MethodNotAllowed(RequestError):
    status, code = 405, "method_not_allowed"


class Misdirected(RequestError):
    status, code = 421, "misdirected_request"


class NotJson(RequestError):
    status, code = 415, "not_json"


class SlowBody(RequestError):
    status, code = 408, "slow_body"


class BodyTooLarge(RequestError):
    status, code = 413, "too_large"


class Unauthorized(RequestError):
    status, code = 401, "unauthorized"

    def __init__(self, message: str, *, given: bool = False) -> None:
        super().__init__(message)
        self.given = given
        """A key was sent, but it is not one of ours."""


class Ending(StrideError):
    status, code = 503, "ending"


class RayError(StrideError):
    status, code = 503, "ray_unavailable"


class StoreError(StrideError):
    status, code = 503, "store_unavailable"
