"""A job through the training service: from its recipe to answers of its model."""

from __future__ import annotations

import time

import pytest

from tests.compose.job import Job
from tests.compose.running import Image, champion, predict, runs

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]


def test_a_job_over_http_is_tracked_and_its_model_is_served(job: Job, digits: list[Image]) -> None:
    ended = job.ended()

    assert ended["state"] == "succeeded", ended
    version = champion(job.stack, "more-digits")
    assert version["run_id"] in {run["info"]["run_id"] for run in runs(job.stack)}
    deadline = time.monotonic() + 60
    while True:
        try:
            found = predict(job.stack, digits[:1], path="/v1/models/more-digits/predict")
            break
        except AssertionError:  # inference looks at the registry every two seconds
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    assert [version for version, _ in found] == ["1"]
