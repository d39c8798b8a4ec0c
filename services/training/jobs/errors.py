"""What only the training service can meet, beside the errors of contracts.errors.

StrideError
├── RequestError
│   ├── KeyReused            an Idempotency-Key that came with another body before
│   ├── Misdirected          a Host header that is not this service's
│   ├── NotJson              a body of another Content-Type
│   └── BodyTooLarge         more bytes than a job can need
├── Ending                   the service is being stopped
├── RayError                 no Ray that can be used
│   └── BadAnswer            Ray answers, but not what is of use for the one job that it was asked about
└── StoreError               the data base of jobs cannot be used
"""

from __future__ import annotations

from contracts.errors import RequestError, StrideError


class KeyReused(RequestError):
    status, code = 409, "idempotency_key_reused"


class Misdirected(RequestError):
    status, code = 421, "misdirected_request"


class NotJson(RequestError):
    status, code = 415, "not_json"


class BodyTooLarge(RequestError):
    status, code = 413, "too_large"


class Ending(StrideError):
    status, code = 503, "ending"


class RayError(StrideError):
    status, code = 503, "ray_unavailable"


class BadAnswer(RayError):
    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final
        """The same question will never get another answer."""


class StoreError(StrideError):
    status, code = 503, "store_unavailable"
