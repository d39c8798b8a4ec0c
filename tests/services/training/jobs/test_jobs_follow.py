"""services.training.jobs.follow: logs over HTTP, as they stand and as they grow."""

from __future__ import annotations

import asyncio

from services.training.jobs.files import JobFiles
from services.training.jobs.service import Service
from tests.services.training.jobs.conftest import MakeJob, client_of, get, post, run


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
