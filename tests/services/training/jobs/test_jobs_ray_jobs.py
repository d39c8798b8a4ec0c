"""services.training.jobs.ray_jobs: what is asked of Ray's Jobs API, and what its answers mean."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.training.jobs.errors import BadAnswer, RayError
from services.training.jobs.job import Share
from services.training.jobs.ray_jobs import Attempt, RayJobs, cluster_token

Answer = Callable[[httpx.Request], httpx.Response]


def asked(answer: Answer, ask: Callable[[RayJobs], Coroutine[Any, Any, Any]]) -> Any:
    """What a method makes of a Ray that answers so."""

    async def run() -> Any:
        ray = RayJobs("http://ray:8265", "secret")
        ray._client = httpx.AsyncClient(
            base_url=ray.address, headers=ray._client.headers, transport=httpx.MockTransport(answer)
        )
        try:
            return await ask(ray)
        finally:
            await ray.close()

    return asyncio.run(run())


def guarded(request: httpx.Request) -> httpx.Response:
    """A Ray with RAY_AUTH_MODE=token."""
    known = request.headers.get("authorization") == "Bearer secret"
    return httpx.Response(200 if known else 401, json={})


def test_a_guarded_ray_is_taken_and_one_that_answers_to_everybody_is_not() -> None:
    asked(guarded, lambda ray: ray.answers())
    with pytest.raises(RayError, match=r"answers without a token .* start it with RAY_AUTH_MODE=token"):
        asked(lambda _: httpx.Response(200, json=[]), lambda ray: ray.answers())


def test_a_refused_token_and_a_ray_that_is_away_are_one_sentence_each() -> None:
    with pytest.raises(RayError, match=r"Ray at http://ray:8265 refuses the token \(HTTP 403\); set RAY_AUTH_TOKEN"):
        asked(lambda _: httpx.Response(403), lambda ray: ray.find("a-1"))

    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(RayError, match=r"does not answer \(connection refused\); see whether it runs") as refused:
        asked(away, lambda ray: ray.find("a-1"))
    assert not isinstance(refused.value, BadAnswer)


def test_a_submission_carries_share_environment_and_command() -> None:
    sent: list[dict[str, Any]] = []

    def take(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json={"submission_id": "a-1"})

    share = Share(cpus=2, gpus=0.5)
    asked(take, lambda ray: ray.submit("a-1", "exec stride", share=share, environment={"A": "b"}))
    assert sent == [
        {
            "entrypoint": "exec stride",
            "submission_id": "a-1",
            "runtime_env": {"env_vars": {"A": "b"}},
            "entrypoint_num_cpus": 2,
            "entrypoint_num_gpus": 0.5,
        }
    ]


def test_a_submission_that_is_there_already_is_fine_and_another_fault_is_not() -> None:
    def submit(ray: RayJobs) -> Coroutine[Any, Any, None]:
        return ray.submit("a-1", "x", share=Share(), environment={})

    asked(lambda _: httpx.Response(400, text="ValueError: Job with submission_id a-1 already exists. Use…"), submit)
    with pytest.raises(BadAnswer, match=r"answers HTTP 500 \(no agent\); see its logs") as busy:
        asked(lambda _: httpx.Response(500, text="Traceback\nno agent"), submit)
    with pytest.raises(BadAnswer, match="answers HTTP 400") as wrong:
        asked(lambda _: httpx.Response(400, text="no such resource"), submit)
    assert (busy.value.final, wrong.value.final) == (False, True)


@pytest.mark.parametrize("text", ["<html>", "[]", "{}", '{"status": "ASLEEP"}'])
def test_an_answer_that_is_no_jobs_state_is_about_that_job_alone(text: str) -> None:
    with pytest.raises(BadAnswer, match="which is no job's state"):
        asked(lambda _: httpx.Response(200, text=text), lambda ray: ray.find("a-1"))


def test_a_question_that_gets_no_answer_in_time_is_about_that_job_and_a_refused_connection_is_not() -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("", request=request)

    with pytest.raises(BadAnswer, match=r"does not answer \(ReadTimeout\)"):
        asked(slow, lambda ray: ray.find("a-1"))


def test_an_attempt_is_what_ray_knows_of_it_or_none() -> None:
    content = {"status": "FAILED", "driver_exit_code": 2, "error_type": "X", "message": "m", "more": 1}
    assert asked(lambda _: httpx.Response(200, json=content), lambda ray: ray.find("a-1")) == Attempt(
        status="FAILED", exit_code=2, reason="X", message="m"
    )
    assert asked(lambda _: httpx.Response(404), lambda ray: ray.find("a-1")) is None
    asked(lambda _: httpx.Response(404), lambda ray: ray.stop("a-1"))  # gone is as good as stopped


def test_the_clusters_token_is_looked_for_where_ray_looks(tmp_path: Path) -> None:
    path = tmp_path / "token"
    with pytest.raises(RayError, match=r"the token of RAY_ADDRESS is not there .* set RAY_AUTH_TOKEN_PATH"):
        cluster_token({"RAY_AUTH_TOKEN_PATH": str(path)})
    path.write_text("\n")
    with pytest.raises(RayError, match="is empty"):
        cluster_token({"RAY_AUTH_TOKEN_PATH": str(path)})
    path.write_text("from-file\n")
    assert cluster_token({"RAY_AUTH_TOKEN_PATH": str(path)}) == "from-file"
    assert cluster_token({"RAY_AUTH_TOKEN_PATH": str(path), "RAY_AUTH_TOKEN": "given"}) == "given"
