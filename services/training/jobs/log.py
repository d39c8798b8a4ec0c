"""One line of JSON an event on standard error: {"time", "level", "event", …}, with the id of the request it is of."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Final

request_id: ContextVar[str] = ContextVar("request_id", default="")
_LOGGER: Final = logging.getLogger("stride.jobs")


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        if identity := request_id.get():
            line["request_id"] = identity
        return json.dumps(line | getattr(record, "fields", {}), default=str)


def configure() -> None:
    """Write to standard error from here on."""
    if not _LOGGER.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_JsonLine())
        _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def info(event: str, **fields: object) -> None:
    _LOGGER.info(event, extra={"fields": fields})


def warning(event: str, **fields: object) -> None:
    _LOGGER.warning(event, extra={"fields": fields})


def failure(event: str, error: BaseException, **fields: object) -> None:
    """An error that is our own fault: with its traceback, folded into the one line."""
    trace = logging.Formatter().formatException((type(error), error, error.__traceback__))
    _LOGGER.error(event, extra={"fields": {**fields, "error": str(error), "traceback": trace}})
