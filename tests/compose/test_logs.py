"""One line of JSON an event, whoever writes it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.compose.stack import Stack

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]


def events(lines: list[str], *, but: str = "$^") -> list[dict[str, Any]]:
    """The lines as objects; those that begin with `but` are text and known to be."""
    found = []
    for line in lines:
        if not re.match(but, line):
            assert line.startswith("{"), line
            found.append(json.loads(line))
    return found


def test_mlflow_writes_json_and_tells_of_no_health_check(stack: Stack) -> None:
    stack.get("tracking", "/api/2.0/mlflow/experiments/search?max_results=3")

    found = events(stack.log("tracking"), but=r"\[MLflow\] |Registry store URI not provided")  # printed by its command

    requests = [event for event in found if event["event"] == "request"]
    assert [event for event in requests if event["path"].endswith("?max_results=3")]
    own = [event for event in requests if event["client"].startswith("127.0.0.1:")]
    assert not [event for event in own if event["path"].endswith("/experiments/search") and event["status"] < 400]


def test_postgres_writes_json_once_its_collector_runs(stack: Stack) -> None:
    query = ("psql", "--username=mlflow", "--dbname=mlflow", "--command=SELECT 1/0")
    assert stack.compose("exec", "-T", "postgres", *query, check=False).returncode != 0

    lines = stack.log("postgres")

    text = max(at for at, line in enumerate(lines) if not line.startswith("{"))
    messages = [event["message"] for event in events(lines[text + 1 :])]
    assert messages[0].startswith("starting PostgreSQL")
    assert "division by zero" in messages


def test_inference_and_the_training_service_write_json(stack: Stack) -> None:
    by_bentoml = r"\d{4}-\d\d-\d\dT\S+ \[\w+\] \["
    assert "started" in {event["event"] for event in events(stack.log("inference"), but=by_bentoml)}
    assert "started" in {event["event"] for event in events(stack.log("training"))}
