"""services.training.jobs.front: who is let in, and the id of a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.training.jobs.service import Service
from services.training.jobs.settings import read
from services.training.jobs.store import Store
from tests.services.training.jobs.conftest import get, post, run, service_of

KEY = "a-key-of-the-web-shop"
METRICS = "what-prometheus-holds"


@pytest.fixture
def guarded(store: Store, tmp_path: Path) -> Service:
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n")
    (tmp_path / "metrics").write_text(METRICS)
    environment = {
        "STRIDE_HOME": str(store.directory.parent),
        "STRIDE_JOBS_KEYS_FILE": str(path),
        "STRIDE_METRICS_KEYS_FILE": str(tmp_path / "metrics"),
        "RAY_ADDRESS": "http://127.0.0.1:9",
    }
    return service_of(store, read(environment, host="0.0.0.0"))  # noqa: S104


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/x", "/v1/jobs/x/logs", "/metrics", "/nothing"])
def test_without_a_key_nothing_is_told(guarded: Service, path: str) -> None:
    none, wrong = run(guarded, get(path), get(path, headers={"X-API-Key": "x" * 20}))
    assert (none.status_code, wrong.status_code) == (401, 401)
    assert none.headers["www-authenticate"] == 'Bearer realm="stride"'
    assert wrong.headers["www-authenticate"] == 'Bearer realm="stride", error="invalid_token"'
    assert none.json()["detail"].startswith("no API key was sent")


@pytest.mark.parametrize("headers", [{"Authorization": f"Bearer {KEY}"}, {"X-API-Key": KEY}])
def test_with_a_key_a_job_is_taken_under_any_name(guarded: Service, headers: dict[str, str]) -> None:
    method, path, given = post()
    (made,) = run(guarded, (method, path, {**given, "headers": {**headers, "Host": "training:8000"}}))
    assert made.status_code == 201


def test_the_key_of_prometheus_opens_the_metrics_and_no_job(guarded: Service) -> None:
    key = {"Authorization": f"Bearer {METRICS}"}
    metrics, jobs = run(guarded, get("/metrics", headers=key), get("/v1/jobs", headers=key))
    assert (metrics.status_code, jobs.status_code) == (200, 401)


def test_probes_and_documentation_need_no_key_and_name_no_address(guarded: Service) -> None:
    live, ready, page, document = run(guarded, *map(get, ("/livez", "/readyz", "/docs", "/openapi.json")))
    assert (live.status_code, ready.status_code, page.status_code, document.status_code) == (200, 503, 200, 200)
    assert ready.json() == {"status": "not ready", "problems": {"ray": "see the service's log"}}


def test_every_answer_has_the_id_of_its_request(service: Service) -> None:
    named, other, missing = run(
        service,
        get("/livez", headers={"X-Request-ID": "web-1:a.b"}),
        get("/livez", headers={"X-Request-ID": "two words"}),
        get("/nothing"),
    )
    assert named.headers["x-request-id"] == "web-1:a.b"
    assert len({other.headers["x-request-id"], missing.headers["x-request-id"], "two words"}) == 3
