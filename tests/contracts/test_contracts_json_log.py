from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from contracts.json_log import JsonLine, JsonLog

IDENTITY: ContextVar[str] = ContextVar("identity", default="")


class Written:
    """A log, and the lines that it has written to standard error."""

    def __init__(self, log: JsonLog, stream: io.StringIO) -> None:
        self.log = log
        self._stream = stream

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    name = f"stride.{request.node.name}"  # a logger lives as long as the process
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log = JsonLog(name, (IDENTITY,))
    log.configure()
    log.configure()  # twice is once: a line must not be written twice
    token = IDENTITY.set("")
    yield Written(log, stream)
    IDENTITY.reset(token)
    logging.getLogger(name).handlers.clear()


def test_an_event_is_one_line_of_json_with_its_fields(written: Written) -> None:
    written.log.info("loaded", seconds=0.5, path=io)
    (line,) = written.lines()
    assert (line["level"], line["event"], line["seconds"]) == ("info", "loaded", 0.5)
    assert line["path"] == str(io)  # what JSON does not know is written as text
    assert line["time"].endswith("+00:00")


def test_an_id_is_in_the_line_while_it_is_set(written: Written) -> None:
    written.log.warning("before")
    IDENTITY.set("abc")
    written.log.warning("within")
    before, within = written.lines()
    assert "identity" not in before
    assert (within["level"], within["identity"]) == ("warning", "abc")


def test_a_failure_holds_its_traceback_in_the_one_line(written: Written) -> None:
    try:
        raise ValueError("no such file")
    except ValueError as error:
        written.log.failure("broken", error, model="digits")
    (line,) = written.lines()
    assert (line["level"], line["error"], line["model"]) == ("error", "no such file", "digits")
    assert "Traceback" in line["traceback"]
    assert "test_contracts_json_log" in line["traceback"]


def test_the_line_of_another_s_logger_holds_the_traceback_too() -> None:
    """As uvicorn and MLflow log: with the exception in the record."""
    try:
        raise ValueError("no such file")
    except ValueError:
        record = logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, "broken by %s", ("it",), sys.exc_info())
    line = json.loads(JsonLine().format(record))
    assert (line["level"], line["event"]) == ("error", "broken by it")
    assert line["traceback"].endswith("ValueError: no such file")
