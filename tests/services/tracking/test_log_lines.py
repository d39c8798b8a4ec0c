"""services.tracking.log_lines: uvicorn's records as JSON, and which of them are left out."""

from __future__ import annotations

import json
import logging
import logging.config

import pytest

from services.tracking.log_lines import CONFIG, NoHealthCheck, RequestLine

RUN = ("GET", "/api/2.0/mlflow/runs/get?run_id=1")
HEALTH = ("POST", "/api/2.0/mlflow/experiments/search")


def asked(client: str, status: int, what: tuple[str, str] = RUN) -> logging.LogRecord:
    """A record as uvicorn's access log makes it."""
    parts = (client, *what, "1.1", status)
    return logging.LogRecord("uvicorn.access", logging.INFO, "", 0, '%s - "%s %s HTTP/%s" %d', parts, None)


def test_a_request_is_a_line_of_json_with_its_parts() -> None:
    record = asked("172.18.0.1:4000", 200)

    line = json.loads(RequestLine().format(record))

    assert line.pop("time")
    fields = {"client": "172.18.0.1:4000", "method": "GET", "path": "/api/2.0/mlflow/runs/get?run_id=1", "status": 200}
    assert line == {"level": "info", "event": "request", **fields}
    assert record.getMessage().startswith("172.18.0.1:4000 - ")  # other handlers find the record as it was


@pytest.mark.parametrize(
    ("client", "what", "status", "written"),
    [
        ("127.0.0.1:4000", HEALTH, 200, False),
        ("127.0.0.1:4000", HEALTH, 503, True),
        ("127.0.0.1:4000", RUN, 200, True),  # as who comes by way of `kubectl port-forward`
        ("127.0.0.1:4000", ("GET", HEALTH[1]), 200, True),
        ("172.18.0.1:4000", HEALTH, 200, True),
        ("172.18.0.1:4000", RUN, 404, True),
    ],
)
def test_only_the_health_check_that_was_answered_is_left_out(
    client: str, what: tuple[str, str], status: int, written: bool
) -> None:
    assert NoHealthCheck().filter(asked(client, status, what)) is written


def test_the_configuration_is_one_that_logging_takes() -> None:
    names = (None, "mlflow", "uvicorn", "uvicorn.access")
    before = {name: (list((one := logging.getLogger(name)).handlers), one.level, one.propagate) for name in names}
    try:
        logging.config.dictConfig(json.loads(CONFIG.read_text()))
        (handler,) = logging.getLogger("uvicorn.access").handlers
        assert isinstance(handler.formatter, RequestLine)
    finally:
        for name, (handlers, level, propagate) in before.items():
            logger = logging.getLogger(name)
            logger.handlers, logger.level, logger.propagate = handlers, level, propagate
