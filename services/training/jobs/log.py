"""The training service's log; what is logged while a request is answered has its `request_id`."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

from contracts.json_log import JsonLog

request_id: ContextVar[str] = ContextVar("request_id", default="")

_LOG: Final = JsonLog("stride.jobs", (request_id,))
configure, info, warning, failure = _LOG.configure, _LOG.info, _LOG.warning, _LOG.failure
