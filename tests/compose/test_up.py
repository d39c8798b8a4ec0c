"""`docker compose up --wait`: what stands when it comes back."""

from __future__ import annotations

import json
import time

import pytest

from tests.compose.job import Job
from tests.compose.running import LONG_RUNNING, ONE_SHOTS, Image, predict, right
from tests.compose.stack import Stack

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]


def test_up_ends_with_a_champion_that_answers_rightly(stack: Stack, digits: list[Image]) -> None:
    found = predict(stack, digits)

    assert right(digits, found) >= 0.9
    assert {version for version, _ in found} == {"1"}
    states = {name: each["State"] for name, each in stack.containers().items()}
    assert set(states) == LONG_RUNNING | ONE_SHOTS
    assert {name for name, state in states.items() if state["Running"]} == LONG_RUNNING
    assert all(states[name]["Health"]["Status"] == "healthy" for name in LONG_RUNNING)
    assert all(states[name]["ExitCode"] == 0 for name in ONE_SHOTS)


def test_a_job_is_taken_from_who_has_the_key(job: Job) -> None:
    with pytest.raises(AssertionError, match="401"):
        job.stack.ask("training", "/v1/jobs", b'{"kind": "train", "recipe": "digits"}', key=False)
    assert job.stack.get("training", f"/v1/jobs/{job.id}")["state"] in ("queued", "running")


def test_the_gpu_s_file_reserves_one_for_what_computes(stack: Stack) -> None:
    files = ("-f", "docker-compose.yml", "-f", "infra/compose.gpu.yml")
    services = json.loads(stack.run("docker", "compose", *files, "config", "--format", "json").stdout)["services"]
    for name in ("training", "inference", "ship"):
        (device,) = services[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"], device["count"]) == ("nvidia", ["gpu"], 1), name
        assert services[name]["environment"]["STRIDE_REQUIRE_GPU"] == "1", name


def test_an_up_over_a_running_stack_starts_nothing_again(stack: Stack) -> None:
    before = {name: stack.containers()[name]["State"]["StartedAt"] for name in LONG_RUNNING}
    started = time.monotonic()

    stack.up()

    assert {name: stack.containers()[name]["State"]["StartedAt"] for name in LONG_RUNNING} == before
    assert any("nothing is fitted" in line for line in stack.log("ship"))
    assert time.monotonic() - started < 120
