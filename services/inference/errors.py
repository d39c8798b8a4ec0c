"""What only a server can meet, beside the errors of contracts.errors.

StrideError
├── RequestError
│   ├── (NotFound)
│   │   └── UnknownModel     no model has that name, as far as is known here
│   ├── InvalidTensor        a request of the Open Inference Protocol that is not for this model, or none
│   ├── MalformedBody        a body that does not follow its own Content-Type
│   ├── MethodNotAllowed     the address is known, the method is not
│   ├── SlowBody             the body did not arrive in time
│   ├── UnknownEncoding      a Content-Encoding that is not unpacked
│   └── Unauthorized         no API key, or none that is known, where one is asked for
├── NoModel
│   └── NotYet               it is not loaded, but it may be a moment later
├── Overloaded
│   └── BodiesFull           no room for a body beside those of the other requests
└── InferenceFailed          the runtime failed on an image that was fine
"""

from __future__ import annotations

from contracts.errors import NoModel, NotFound, Overloaded, RequestError, StrideError


class InvalidTensor(RequestError):
    status, code = 400, "invalid_tensor"


class MalformedBody(RequestError):
    status, code = 400, "malformed_body"


class MethodNotAllowed(RequestError):
    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class SlowBody(RequestError):
    status, code = 408, "slow_body"


class UnknownEncoding(RequestError):
    status, code = 415, "unknown_encoding"


class UnknownModel(NotFound):
    pass


class NotYet(NoModel):
    pass


class BodiesFull(Overloaded):
    pass


class InferenceFailed(StrideError):
    code = "inference_failed"


class Unauthorized(RequestError):
    status, code = 401, "unauthorized"

    def __init__(self, message: str, *, given: bool = False) -> None:
        super().__init__(message)
        self.given = given
        """A key was sent, but it is not one of ours."""
