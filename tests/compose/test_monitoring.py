"""Prometheus: its configuration, its rules, what it reads where keys are asked for, and what the dashboards ask it."""

from __future__ import annotations

import json
import re
import time
from urllib.parse import quote

import pytest

from tests.compose.running import Image, Restarted, predict
from tests.compose.stack import Stack, docker

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
# What is told on a GPU, or from the first time on that something was done, or was done often enough.
LATER = re.compile(r"gpu_memory|shadow_|quarantines_|prediction_log_dropped|drift_psi")


@pytest.fixture
def watched(restarted: Restarted) -> Stack:
    """Prometheus watches it, and inference asks for keys."""
    return restarted.stack


def test_promtool_accepts_rules_and_configuration_and_they_fire_when_they_should(watched: Stack) -> None:
    directory = watched.directory / "infra/monitoring/prometheus"
    done = docker(
        "run", "--rm", "--network=none", "--entrypoint=promtool", "--volume", f"{directory}:/rules:ro",
        "--workdir=/rules", "prom/prometheus:v2.53.3", "test", "rules", "rules_test.yml",
    )  # fmt: skip
    assert "SUCCESS" in done.stdout + done.stderr
    # Where its files of credentials are, which it looks for.
    watched.compose("exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml")


def test_it_reads_services_that_ask_for_keys_with_one_that_opens_nothing_else(watched: Stack) -> None:
    with pytest.raises(AssertionError, match="401"):
        watched.ask("training", "/v1/jobs", headers={"X-API-Key": watched.read("prometheus", "/run/secrets/keys")})
    deadline = time.monotonic() + 60
    health: dict[str, str] = {}
    while set(health.values()) != {"up"} and time.monotonic() < deadline:
        targets = watched.get("prometheus", "/api/v1/targets?state=active")["data"]["activeTargets"]
        health = {each["labels"]["job"]: each["health"] for each in targets}
        time.sleep(0.5)
    assert health == {"inference": "up", "training": "up", "prometheus": "up"}


def test_it_knows_every_metric_that_the_dashboards_and_the_rules_ask_for(watched: Stack, digits: list[Image]) -> None:
    predict(watched, digits)
    with pytest.raises(AssertionError, match="415"):  # so that there is an error to be counted
        watched.ask("inference", "/v1/predict", b"no image", {"Content-Type": "image/png"})
    dashboards = sorted((watched.directory / "infra/monitoring/grafana/dashboards").glob("*.json"))
    expressions = [
        target["expr"].replace("$__rate_interval", "1m").replace("$model", ".*")
        for dashboard in dashboards
        for panel in json.loads(dashboard.read_text())["panels"]
        for target in panel["targets"]
    ]
    groups = watched.get("prometheus", "/api/v1/rules")["data"]["groups"]
    expressions += [rule["query"] for group in groups for rule in group["rules"]]
    wanted = {name for expression in expressions for name in re.findall(r"stride_[a-z_]+", expression)}
    deadline = time.monotonic() + 45  # it looks every 15 s
    while True:
        missing = {
            name for name in wanted - set(watched.get("prometheus", "/api/v1/label/__name__/values")["data"])
            if not LATER.search(name)
        }  # fmt: skip
        if not missing or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert not missing
    for expression in expressions:
        answer = watched.ask("prometheus", "/api/v1/query", f"query={quote(expression, safe='')}".encode(), FORM)
        assert json.loads(answer.body)["status"] == "success", expression


def test_its_log_is_json(watched: Stack) -> None:
    lines = [json.loads(line) for line in watched.log("prometheus")]
    assert "Server is ready to receive web requests." in [line.get("msg") for line in lines]
