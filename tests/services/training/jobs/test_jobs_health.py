"""services.training.jobs.health and docs: what the service says of itself, to probes, to Prometheus and to people."""

from __future__ import annotations

import json

from services.training.jobs.request import JobRequest
from services.training.jobs.service import Service
from tests.services.training.jobs.conftest import MakeJob, get, post, run


def test_readiness_says_what_is_wrong(service: Service) -> None:
    async def told() -> str | None:
        return "tracking is away"

    service.tracking_problem = told
    (ready,) = run(service, get("/readyz"))
    assert ready.status_code == 503
    assert ready.json()["problems"] == {"ray": "Ray is being started", "tracking": "tracking is away"}


def test_metrics_count_jobs_by_state_and_requests_by_route(service: Service, make_job: MakeJob) -> None:
    service.store.end(make_job(), "refused")
    exposed = run(service, post(), get("/v1/jobs/abc"), get("/v1/%2e%2e/etc"), get("/metrics"))[-1].text
    assert 'stride_jobs{state="queued"} 1.0' in exposed
    assert 'stride_jobs{state="refused"} 1.0' in exposed
    assert 'stride_jobs{state="running"} 0.0' in exposed
    assert 'stride_jobs_http_requests_total{route="/v1/jobs",status="2xx"} 1.0' in exposed
    assert 'stride_jobs_http_requests_total{route="/v1/jobs/{job_id}",status="4xx"} 1.0' in exposed
    assert 'stride_jobs_http_requests_total{route="other",status="4xx"} 1.0' in exposed
    assert 'stride_jobs_ended_total{kind="train",state="cancelled"} 0.0' in exposed
    assert "stride_jobs_ready 0.0" in exposed


def test_the_page_shows_every_route_and_runs_nothing(service: Service) -> None:
    page, document = run(service, get("/docs"), get("/openapi.json"))
    for path, methods in document.json()["paths"].items():
        assert all(f"{method.upper()} {path}" in page.text for method in methods)
    assert "<script" not in page.text
    assert "Idempotency-Key" in page.text or "idempotency-key" in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_the_body_of_a_job_is_documented_with_examples_that_are_valid(service: Service) -> None:
    (document,) = run(service, get("/openapi.json"))
    content = document.json()["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        JobRequest.model_validate(example["value"])
    assert set(content["schema"]["properties"]) == set(JobRequest.model_fields)
    assert all(field.get("description") for field in content["schema"]["properties"].values())
    assert json.dumps(content)
