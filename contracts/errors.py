"""The errors a user can cause or meet; each carries its HTTP status, its exit code and a stable code.

    StrideError
    ├── RecipeError          a recipe or an option that cannot be followed
    ├── DataError            a data set that is missing, empty or broken
    ├── DeviceError          a device that was asked for and is not there
    ├── FitError             a fit that cannot go on (out of memory, a batch of one)
    │   ├── Diverged         its loss is not finite any more
    │   └── AlreadyFitting   another process is at the same fit
    ├── ExportError          a graph that cannot be made or is not equal to its network
    ├── BundleError          a bundle that is incomplete, changed or of another schema
    ├── RegistryError        the tracking server is away, or does not hold what was asked for
    ├── GateRefused          the gate said no; the champion stays
    ├── RequestError         a request whose parameters are wrong
    │   ├── NotFound         nothing stands at that address, or no model has that name
    │   ├── MalformedBody    a body that does not follow its own Content-Type
    │   ├── MethodNotAllowed the address is known, the method is not
    │   ├── SlowBody         the body did not arrive in time
    │   └── Unauthorized     no API key, or none that is known, where one is asked for
    ├── ImageError           bytes that are an image but cannot be decoded
    │   ├── NotAnImage       bytes of a kind that is not served
    │   └── TooLarge         more bytes, pixels, parts or rows than the limit
    ├── NoModel              no model has been loaded yet
    └── Overloaded           the queue is full, or the deadline passed

A message is one sentence: subject, offending value, what was expected, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class StrideError(Exception):
    """Base of everything that Stride raises on purpose."""

    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RecipeError(StrideError):
    status, exit_code, code = 422, 2, "invalid_recipe"


class DataError(StrideError):
    status, code = 422, "invalid_data"


class DeviceError(StrideError):
    status, code = 503, "device_unavailable"


class FitError(StrideError):
    code = "fit_failed"


class Diverged(FitError):
    code = "fit_diverged"


class AlreadyFitting(FitError):
    status, exit_code, code = 409, 2, "already_fitting"


class ExportError(StrideError):
    code = "export_failed"


class BundleError(StrideError):
    code = "invalid_bundle"


class RegistryError(StrideError):
    status, code = 503, "registry_unavailable"


class GateRefused(StrideError):
    status, exit_code, code = 409, 2, "gate_refused"


class RequestError(StrideError):
    status, exit_code, code = 422, 2, "invalid_request"


class NotFound(RequestError):
    status, code = 404, "not_found"


class MalformedBody(RequestError):
    status, code = 400, "malformed_body"


class MethodNotAllowed(RequestError):
    status, code = 405, "method_not_allowed"

    def __init__(self, message: str, *, allow: str = "") -> None:
        super().__init__(message)
        self.allow = allow
        """The methods that there are, as the header Allow lists them."""


class SlowBody(RequestError):
    status, code = 408, "slow_body"


class Unauthorized(RequestError):
    status, code = 401, "unauthorized"

    def __init__(self, message: str, *, given: bool = False) -> None:
        super().__init__(message)
        self.given = given
        """A key was sent, but it is not one of ours."""


class ImageError(StrideError):
    status, exit_code, code = 400, 2, "undecodable_image"


class NotAnImage(ImageError):
    status, code = 415, "not_an_image"


class TooLarge(ImageError):
    status, code = 413, "too_large"


class NoModel(StrideError):
    status, code = 503, "no_model"


class Overloaded(StrideError):
    status, code = 429, "overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, reason: str = "queue_full") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason
        """What was short, in one word: for metrics."""
