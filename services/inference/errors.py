"""What only a server can meet, beside the errors of contracts.errors.

StrideError
├── RequestError
│   ├── (NotFound)
│   │   └── UnknownModel     no model has that name, as far as is known here
│   ├── InvalidTensor        a request of the Open Inference Protocol that is not for this model, or none
│   └── UnknownEncoding      a Content-Encoding that is not unpacked
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
