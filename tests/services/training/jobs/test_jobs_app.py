"""services.training.jobs.app: the routes over a real store, without a Ray behind them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from contracts.errors import RecipeError, RequestError
from services.training.jobs.app import MAX_BYTES, build
from services.training.jobs.files import JobFiles
from services.training.jobs.job import Job, Share, Work
from services.training.jobs.metrics import Metrics
from services.training.jobs.ray_jobs import RayJobs
from services.training.jobs.request import JobRequest
from services.training.jobs.runner import Runner
from services.training.jobs.service import Service
from services.training.jobs.settings import Settings, read
from services.training.jobs.store import Store

MakeJob = Callable[..., Job]
KEY = "a-key-of-the-web-shop"


def resolve(request: JobRequest) -> Work:
    if request.recipe != "digits":
        raise RecipeError(f"recipe '{request.recipe}' is not known; did you mean 'digits'?")
    return Work(recipe="digits", model_name="digits", document="name: digits\n", command=("true",))


def share(request: JobRequest) -> Share:
    if request.gpus:
        raise RequestError("gpus is 1; this machine has 0, ask for at most that many.")
    return Share()


async def tracked() -> str | None:
    return None


def service_of(store: Store, settings: Settings) -> Service:
    metrics = Metrics()
    runner = Runner(
        settings,
        store,
        head=None,
        at_once=1,
        environment={},
        connect=lambda address: RayJobs(address, "token"),
        metrics=metrics,
    )
    return Service(
        settings=settings,
        store=store,
        runner=runner,
        metrics=metrics,
        resolve=resolve,
        share=share,
        tracking_problem=tracked,
    )


def client_of(service: Service, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build(service), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000", **options)


@pytest.fixture
def service(store: Store, home: Path) -> Service:
    return service_of(store, read({"STRIDE_HOME": str(store.directory.parent), "RAY_ADDRESS": "http://127.0.0.1:9"}))


def run(service: Service, *asked: tuple[str, str, dict[str, Any]], **options: Any) -> list[httpx.Response]:
    """Sends requests one after the other: (method, path, keywords of httpx)."""

    async def send() -> list[httpx.Response]:
        async with client_of(service, **options) as client:
            return [await client.request(method, path, **given) for method, path, given in asked]

    return asyncio.run(send())


def post(**content: Any) -> tuple[str, str, dict[str, Any]]:
    return "POST", "/v1/jobs", {"json": {"kind": "train", "recipe": "digits", **content}}


def get(path: str, **given: Any) -> tuple[str, str, dict[str, Any]]:
    return "GET", path, given


def test_a_posted_job_is_queued_and_shown(service: Service) -> None:
    (made,) = run(service, post(set={"fit.epochs": 3}))
    assert made.status_code == 201
    job = made.json()
    assert (job["state"], job["kind"], job["recipe"], job["attempts"], job["runs"]) == (
        "queued",
        "train",
        "digits",
        0,
        [],
    )
    assert job["request"] == {"kind": "train", "recipe": "digits", "set": {"fit.epochs": 3}}
    assert made.headers["location"] == job["links"]["self"] == f"/v1/jobs/{job['id']}"
    shown, listed = run(service, get(f"/v1/jobs/{job['id']}"), get("/v1/jobs"))
    assert shown.json() == job
    assert listed.json() == {"jobs": [job], "next": None}


def test_a_key_gives_the_same_job_and_says_so(service: Service) -> None:
    method, path, given = post()
    with_key = (method, path, {**given, "headers": {"Idempotency-Key": "k1"}})
    first, again = run(service, with_key, with_key)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    (other,) = run(
        service, (method, path, {"json": {"kind": "ship", "recipe": "digits"}, "headers": {"Idempotency-Key": "k1"}})
    )
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("asked", "status", "code", "detail"),
    [
        (post(recipe="digitz"), 422, "invalid_recipe", "recipe 'digitz' is not known; did you mean 'digits'?"),
        (post(reciep="digits"), 422, "invalid_request", "job: key 'reciep' is not known; did you mean 'recipe'?"),
        (post(gpus=1), 422, "invalid_request", "gpus is 1; this machine has 0, ask for at most that many."),
        (
            ("POST", "/v1/jobs", {"content": b"{", "headers": {"Content-Type": "application/json"}}),
            400,
            "malformed_body",
            "the body is not valid JSON",
        ),
        (
            ("POST", "/v1/jobs", {"content": b"{}", "headers": {"Content-Type": "text/plain"}}),
            415,
            "not_json",
            "Content-Type is 'text/plain'; send JSON, and application/json here.",
        ),
        (
            ("POST", "/v1/jobs", {"content": b" " * (MAX_BYTES + 1), "headers": {"Content-Type": "application/json"}}),
            413,
            "too_large",
            "the body has more than 1,048,576 bytes",
        ),
        (
            ("POST", "/v1/jobs", {**post()[2], "headers": {"Idempotency-Key": "a b"}}),
            422,
            "invalid_request",
            "Idempotency-Key is 'a b'; use 1 to 255 visible ASCII characters",
        ),
        (get("/v1/jobs/nonsense"), 404, "not_found", "job 'nonsense' is not known; GET /v1/jobs lists those that are."),
        (get("/v1/jobs/nonsense/logs"), 404, "not_found", "job 'nonsense' is not known"),
        (("DELETE", "/v1/jobs/nonsense", {}), 404, "not_found", "job 'nonsense' is not known"),
        (get("/v2"), 404, "not_found", "nothing stands at '/v2'; GET /docs lists what does."),
        (("PUT", "/v1/jobs", {}), 405, "method_not_allowed", "PUT /v1/jobs is not known; use "),
        (get("/v1/jobs?state=done"), 422, "invalid_request", "state is 'done'; input should be 'queued', "),
        (get("/v1/jobs?limit=0"), 422, "invalid_request", "limit is '0'; input should be greater than or equal to 1."),
        (get("/v1/jobs?after=x"), 422, "invalid_request", "after is 'x'; "),
        (get("/livez", headers={"Host": "evil.example"}), 421, "misdirected_request", "Host is 'evil.example'; "),
    ],
)
def test_what_is_wrong_is_one_problem_with_one_sentence(
    service: Service, asked: tuple[str, str, dict[str, Any]], status: int, code: str, detail: str
) -> None:
    (answer,) = run(service, asked)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    problem = answer.json()
    assert problem["detail"].startswith(detail)
    assert (problem["status"], problem["code"], problem["type"]) == (status, code, f"urn:stride:error:{code}")
    assert "\n" not in problem["detail"]
    assert service.store.counts()["queued"] == 0


def test_pages_lead_from_one_to_the_next(service: Service, make_job: MakeJob) -> None:
    made = [make_job().id for _ in range(3)]
    (first,) = run(service, get("/v1/jobs?limit=2"))
    (second,) = run(service, get(f"/v1/jobs?limit=2&after={first.json()['next']}"))
    assert [job["id"] for job in first.json()["jobs"] + second.json()["jobs"]] == made[::-1]
    assert second.json()["next"] is None
    (none,) = run(service, get("/v1/jobs?state=running"))
    assert none.json() == {"jobs": [], "next": None}


def test_a_waiting_job_is_cancelled_any_number_of_times(service: Service, make_job: MakeJob) -> None:
    job = make_job()
    answers = run(service, *[("DELETE", f"/v1/jobs/{job.id}", {})] * 2)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["state"] == "cancelled"


def test_a_job_that_runs_is_told_to_stop(service: Service, make_job: MakeJob) -> None:
    job = make_job()
    service.store.update(job, state="running", attempt=1, submission="s")
    (answer,) = run(service, ("DELETE", f"/v1/jobs/{job.id}", {}))
    assert answer.status_code == 202
    assert (answer.json()["state"], answer.json()["cancelling"]) == ("running", True)


def test_a_log_is_given_whole_or_from_a_byte_on(service: Service, make_job: MakeJob) -> None:
    job = make_job()
    files = JobFiles(service.store.directory, job.id)
    files.note("first")
    path = f"/v1/jobs/{job.id}/logs"
    whole, rest = run(service, get(path), get(f"{path}?offset=4"))
    assert whole.text == "--- first\n"
    assert rest.text == "first\n"
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_followed_log_grows_and_ends_with_its_job(service: Service, make_job: MakeJob) -> None:
    job = make_job()
    files = JobFiles(service.store.directory, job.id)

    async def follow() -> str:
        async def work() -> None:
            for number in range(3):
                await asyncio.sleep(0.1)
                files.note(f"line {number}")
            await asyncio.sleep(0.1)
            files.note("the last")
            service.store.end(job, "succeeded")

        working = asyncio.create_task(work())
        async with client_of(service) as client:
            answer = await client.get(f"/v1/jobs/{job.id}/logs?follow=1")
        await working
        return answer.text

    assert asyncio.run(asyncio.wait_for(follow(), 20)) == "--- line 0\n--- line 1\n--- line 2\n--- the last\n"
    assert service.followers == 0


def test_a_service_that_ends_takes_no_jobs_and_lets_go_of_its_followers(service: Service, make_job: MakeJob) -> None:
    service.draining = True
    refused, followed = run(service, post(), get(f"/v1/jobs/{make_job().id}/logs?follow=1"))
    assert (refused.status_code, refused.json()["code"]) == (503, "ending")
    assert refused.headers["retry-after"] == "2"
    assert followed.text == ""


def test_too_many_followers_are_sent_away(service: Service, make_job: MakeJob) -> None:
    service.followers = 64
    followed, whole = run(
        service, get(f"/v1/jobs/{(job := make_job()).id}/logs?follow=1"), get(f"/v1/jobs/{job.id}/logs")
    )
    assert (followed.status_code, followed.headers["retry-after"]) == (429, "10")
    assert whole.status_code == 200


@pytest.fixture
def guarded(store: Store, tmp_path: Path) -> Service:
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\n")
    environment = {
        "STRIDE_HOME": str(store.directory.parent),
        "STRIDE_JOBS_KEYS_FILE": str(path),
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


def test_probes_and_documentation_need_no_key_and_name_no_address(guarded: Service) -> None:
    live, ready, page, document = run(guarded, *map(get, ("/livez", "/readyz", "/docs", "/openapi.json")))
    assert (live.status_code, ready.status_code, page.status_code, document.status_code) == (200, 503, 200, 200)
    assert ready.json() == {"status": "not ready", "problems": {"ray": "see the service's log"}}


def test_readiness_says_what_is_wrong(service: Service) -> None:
    async def told() -> str | None:
        return "tracking is away"

    service.tracking_problem = told
    (ready,) = run(service, get("/readyz"))
    assert ready.status_code == 503
    assert ready.json()["problems"] == {"ray": "Ray is being started", "tracking": "tracking is away"}


def test_a_store_that_cannot_be_written_is_a_503(service: Service) -> None:
    service.store._connection.execute("PRAGMA query_only = 1")
    refused, ready = run(service, post(), get("/readyz"))
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert "jobs data base" in ready.json()["problems"]["store"]


def test_every_answer_has_the_id_of_its_request(service: Service) -> None:
    named, other, missing = run(
        service,
        get("/livez", headers={"X-Request-ID": "web-1:a.b"}),
        get("/livez", headers={"X-Request-ID": "two words"}),
        get("/nothing"),
    )
    assert named.headers["x-request-id"] == "web-1:a.b"
    assert len({other.headers["x-request-id"], missing.headers["x-request-id"], "two words"}) == 3


def test_our_own_fault_is_a_500_that_names_the_request(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: JobRequest) -> Work:
        raise KeyError("a bug")

    service.resolve = fail
    (answer,) = run(service, post(), headers={"X-Request-ID": "r-1"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "r-1" in answer.json()["detail"]
    assert "a bug" not in answer.text


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
