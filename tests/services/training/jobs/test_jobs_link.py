"""services.training.jobs.link: which Ray is used, and why there is none."""

from __future__ import annotations

import asyncio

import pytest

from services.training.jobs import link
from services.training.jobs.errors import RayError
from services.training.jobs.link import RayLink
from tests.services.training.jobs.conftest import FakeHead, FakeRay


def linked(ray: FakeRay, head: FakeHead | None = None) -> RayLink:
    return RayLink(
        head=head,  # type: ignore[arg-type] # the same methods
        cluster=None if head else ray.address,
        connect=lambda _: ray,  # type: ignore[arg-type,return-value] # likewise
    )


def test_a_head_is_started_where_there_is_none_and_taken_over_where_there_is(ray: FakeRay) -> None:
    head = FakeHead(ended=True)
    found: object = asyncio.run(linked(ray, head).reach())
    assert found is ray
    assert head.started == 1
    asyncio.run(linked(ray, head).reach())
    assert head.started == 1


def test_a_cluster_that_does_not_answer_is_no_client(ray: FakeRay) -> None:
    ray.away = True
    made = linked(ray)
    with pytest.raises(RayError, match="does not answer"):
        asyncio.run(made.reach())
    assert made.client is None
    with pytest.raises(RayError, match="Ray is being started"):
        asyncio.run(made.check())


def test_a_head_that_is_silent_for_long_is_ended_and_one_that_was_just_heard_is_not(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = FakeHead()
    made = linked(ray, head)
    asyncio.run(made.reach())
    asyncio.run(made.away(RayError("no answer.")))
    assert (head.ended, made.problem) == (False, "no answer.")
    monkeypatch.setattr(link, "_SILENCE_S", -1.0)
    asyncio.run(made.away(RayError("no answer.")))
    assert (head.ended, made.client) == (True, None)


def test_a_problem_is_over_once_ray_has_answered(ray: FakeRay) -> None:
    made = linked(ray)
    asyncio.run(made.reach())
    made.say("no room")
    made.well()
    asyncio.run(made.check())  # raises while there is a problem
