"""What is left when a part of the stack dies under load, or is stopped."""

from __future__ import annotations

import time

import pytest

from tests.compose.job import Job
from tests.compose.running import Image, champion, predict, runs
from tests.compose.stack import Stack

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]


def test_killed_one_after_the_other_all_return_and_nothing_is_lost(stack: Stack, digits: list[Image]) -> None:
    """MLflow, Postgres and the training service, which has taken a job, while predictions are asked for."""
    before, version = runs(stack), champion(stack)

    with stack.load(digits[0][0]) as counts:
        for service in ("tracking", "postgres"):
            stack.kill(service)
            stack.wait_healthy(service)
            stack.wait_healthy("tracking")
        job = Job.post(stack, kind="train", set={"model_name": "under-fire"})
        stack.kill("training")
        stack.wait_healthy("training")

    assert counts["ok"] > 100
    assert set(counts) <= {"ok", "seconds", "examples"}, counts
    ended = job.ended()
    assert ended["state"] == "succeeded", ended
    assert champion(stack) == version
    after = {run["info"]["run_id"]: run for run in runs(stack)}
    assert [after.pop(run["info"]["run_id"]) for run in before] == before
    assert [run["info"]["status"] for run in after.values()] == ["FINISHED"]  # the job's, in one run


def test_inference_killed_without_a_registry_returns_with_its_champion(stack: Stack, digits: list[Image]) -> None:
    before = predict(stack, digits)
    stack.compose("stop", "tracking")
    try:
        with stack.load(digits[0][0]) as counts:
            stack.kill("inference")
            stack.wait_healthy("inference")
        assert predict(stack, digits) == before
    finally:
        stack.compose("start", "tracking")
    stack.wait_healthy("tracking")

    assert counts["ok"] > 100
    assert "failed" not in counts, counts
    gone = counts.get("lost", 0) + counts.get("unaccepted", 0)
    assert gone <= 8, counts  # what was under way on each of the four connections, and at most one try more
    assert stack.containers()["inference"]["RestartCount"] >= 1


def test_stopping_inference_loses_no_request(stack: Stack, digits: list[Image]) -> None:
    with stack.load(digits[0][0], threads=8) as counts:
        started = time.monotonic()
        stack.compose("stop", "inference")
        seconds = time.monotonic() - started
    state = stack.containers()["inference"]["State"]
    stack.compose("start", "inference")
    stack.wait_healthy("inference")

    assert counts["ok"] > 100
    assert "lost" not in counts, counts
    assert "failed" not in counts, counts
    # Between the last look at the kernel's queue and its end there is a moment; before, 8 of 8 clients met it.
    assert counts.get("unaccepted", 0) <= 2, counts
    assert counts["unreachable"] > 0  # it was away, and the load went on
    assert seconds < 15
    assert state["ExitCode"] in (0, 143)  # not 137, which is what the end of the grace would leave
