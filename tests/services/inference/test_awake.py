from __future__ import annotations

import asyncio
import time

from services.inference.awake import Awake


async def rounds(awake: Awake, times: int, *, gap_s: float) -> None:
    """So many answers, each of which a request follows after `gap_s` seconds."""
    for _ in range(times):
        awake.answered()
        end = time.perf_counter() + gap_s
        while time.perf_counter() < end:
            await asyncio.sleep(0)
        awake.came()


async def looks(for_s: float) -> int:
    """How many rounds the event loop makes of itself until it sleeps."""
    loop, seen = asyncio.get_running_loop(), 0
    selector = loop._selector  # type: ignore[attr-defined] # what it looks at, and for how long
    select = selector.select

    def counted(timeout: float | None = None) -> object:
        nonlocal seen
        seen += timeout == 0
        return select(timeout)

    selector.select = counted
    try:
        await asyncio.sleep(for_s)
    finally:
        selector.select = select
    return seen


def test_it_looks_for_the_next_request_only_where_they_come_soon() -> None:
    async def body() -> None:
        awake = Awake(for_s=0.02)
        awake.answered()
        assert await looks(0.1) <= 2  # nobody knows yet
        awake.came()
        await rounds(awake, 20, gap_s=0.001)
        awake.answered()
        assert await looks(0.1) > 50
        awake.came()
        await rounds(awake, 20, gap_s=0.03)
        awake.answered()
        assert await looks(0.1) <= 2

    asyncio.run(body())


def test_it_sleeps_after_its_time_and_when_a_request_has_come() -> None:
    async def body() -> None:
        awake = Awake(for_s=0.02)
        await rounds(awake, 20, gap_s=0.001)
        awake.answered()
        began = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - began < 0.1  # 0.02 s of looking, not 0.3
        awake.answered()
        awake.came()
        assert await looks(0.05) <= 2

    asyncio.run(body())


def test_one_look_at_a_time_whatever_is_answered() -> None:
    async def body() -> None:
        awake = Awake(for_s=0.02)
        await rounds(awake, 20, gap_s=0.001)
        for _ in range(50):
            awake.answered()
        assert len(asyncio.get_running_loop()._ready) <= 2  # type: ignore[attr-defined]

    asyncio.run(body())
