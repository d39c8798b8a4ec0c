"""infra/monitoring without an engine: dashboards and rules ask for what services tell; tests/compose asks live ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from services.inference.metrics import Metrics
from services.training.jobs.metrics import Metrics as JobMetrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "infra/monitoring"
GIVEN_BY_PROMETHEUS = {"job", "instance", "le"}


def expressions() -> dict[str, str]:
    """Every query of the dashboards and every rule's, by where it stands."""
    found = {}
    for path in sorted((MONITORING / "grafana/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for number, target in enumerate(panel["targets"]):
                found[f"{path.stem}: {panel['title']} {number}"] = target["expr"]
    for group in yaml.safe_load((MONITORING / "prometheus/rules.yml").read_text())["groups"]:
        found.update({f"rule {rule['alert']}": rule["expr"] for rule in group["rules"]})
    return found


EXPRESSIONS = expressions()


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """The names that both services expose -> their labels."""
    registry = CollectorRegistry()
    Metrics(registry)
    found: dict[str, set[str]] = {
        "stride_gpu_memory_bytes": {"gpu", "kind"}
    }  # made where it is asked for: exposition.py
    collectors: list[Any] = [*registry._collector_to_names, *JobMetrics()._registry._collector_to_names]
    for collector in collectors:
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(collector._type, ("",))
        found.update({f"{collector._name}{suffix}": set(collector._labelnames) for suffix in suffixes})
    return found


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_a_query_asks_for_a_metric_and_labels_that_a_service_tells(where: str, told: dict[str, set[str]]) -> None:
    expression = EXPRESSIONS[where]
    names = set(re.findall(r"stride_[a-z_]+", expression))
    assert names <= set(told), where
    for name, selector in re.findall(r"(stride_[a-z_]+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector)) <= told[name] | GIVEN_BY_PROMETHEUS, where
    labels = set().union(*(told[name] for name in names)) | GIVEN_BY_PROMETHEUS
    for listed in re.findall(r"(?:by|on|ignoring|without)\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in listed.split(",")} <= labels, where


def test_prometheus_asks_with_the_key_that_opens_the_metrics_alone() -> None:
    jobs = {
        each["job_name"]: each
        for each in yaml.safe_load((MONITORING / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    }
    mounts = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["prometheus"]["volumes"]
    (secret,) = (mount for mount in mounts if isinstance(mount, dict))
    assert (secret["source"], secret["target"]) == ("metrics-secret", "/run/secrets")
    for name in ("inference", "training"):
        assert jobs[name]["authorization"]["credentials_file"] == "/run/secrets/keys"
