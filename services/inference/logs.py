"""The service's log; what is logged while a request is answered has its `request_id`, and `trace_id` if it has one."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Final

from contracts.json_log import JsonLog

request_id: ContextVar[str] = ContextVar("request_id", default="")
trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""Of the request that is being answered; empty where there is none."""

_LOG: Final = JsonLog("stride.inference", (request_id, trace_id))
info, warning, failure = _LOG.info, _LOG.warning, _LOG.failure


def configure() -> None:
    """Write to standard error from here on."""
    _LOG.configure()
    # It warns of each retry; a registry that stays away is asked every two seconds, and told of once, by us.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
