"""How a service logs: one line of JSON an event on standard error, {"time", "level", "event", …}."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime


class JsonLog:
    """The log of one service.

    Args:
        name: Of its logger.
        carried: Each is a field of the line where it is not empty, under its own name: the ids of a request.
    """

    def __init__(self, name: str, carried: tuple[ContextVar[str], ...]) -> None:
        self._logger = logging.getLogger(name)
        self.line = JsonLine(carried)

    def configure(self) -> None:
        """Write to standard error from here on; by a handler of its own, as a server's would wrap the line in text."""
        if not self._logger.handlers:
            handler = logging.StreamHandler(sys.stderr)
            handler.setFormatter(self.line)
            self._logger.addHandler(handler)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False

    def info(self, event: str, **fields: object) -> None:
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: object) -> None:
        self._logger.warning(event, extra={"fields": fields})

    def failure(self, event: str, error: BaseException, **fields: object) -> None:
        """An error that is our own fault: with its traceback, folded into the one line."""
        trace = self.line.formatException((type(error), error, error.__traceback__))
        self._logger.error(event, extra={"fields": {**fields, "error": str(error), "traceback": trace}})


class JsonLine(logging.Formatter):
    """A record as JSON; `fields` of the record are fields of the line, and so is the traceback that it carries."""

    def __init__(self, carried: tuple[ContextVar[str], ...] = ()) -> None:
        super().__init__()
        self._carried = carried

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage()}
        for kept in self._carried:
            if value := kept.get():
                line[kept.name] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "fields", {}), default=str)
