"""One line of JSON an event: {"time", "level", "event", …}, on standard error.

What is logged while a request is answered also has its `request_id`, and its `trace_id` where it has one.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str] = ContextVar("request_id", default="")
trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""Of the request that is being answered; empty where there is none."""

_LOGGER = logging.getLogger("stride.inference")


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        for kept in (request_id, trace_id):
            if value := kept.get():
                line[kept.name] = value
        return json.dumps(line | getattr(record, "fields", {}), default=str)


def configure() -> None:
    """Give the service's logger its own handler; BentoML's configuration would wrap each line in text."""
    if not _LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonLine())
        _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    # It warns of each retry; a registry that stays away is asked every two seconds, and told of once, by us.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    _LOGGER.propagate = False


def info(event: str, **fields: object) -> None:
    _LOGGER.info(event, extra={"fields": fields})


def warning(event: str, **fields: object) -> None:
    _LOGGER.warning(event, extra={"fields": fields})


def failure(event: str, error: BaseException, **fields: object) -> None:
    """An error that is our own fault: with its traceback, folded into the one line."""
    trace = logging.Formatter().formatException((type(error), error, error.__traceback__))
    _LOGGER.error(event, extra={"fields": {**fields, "error": str(error), "traceback": trace}})
