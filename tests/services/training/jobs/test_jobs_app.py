"""services.training.jobs.app: the routes over a real store, without a Ray behind them."""

from __future__ import annotations

from typing import Any

import pytest

from services.training.jobs.app import MAX_BYTES
from services.training.jobs.job import Work
from services.training.jobs.request import JobRequest
from services.training.jobs.service import Service
from tests.services.training.jobs.conftest import MakeJob, get, post, run


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


def test_a_store_that_cannot_be_written_is_a_503(service: Service) -> None:
    service.store._connection.execute("PRAGMA query_only = 1")
    refused, ready = run(service, post(), get("/readyz"))
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert "jobs data base" in ready.json()["problems"]["store"]


def test_our_own_fault_is_a_500_that_names_the_request(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    def fail(_: JobRequest) -> Work:
        raise KeyError("a bug")

    service.resolve = fail
    (answer,) = run(service, post(), headers={"X-Request-ID": "r-1"})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "r-1" in answer.json()["detail"]
    assert "a bug" not in answer.text
