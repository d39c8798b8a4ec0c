"""services.inference.batcher: every answer to its own question, and only for those who still wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from contracts.errors import Overloaded
from services.inference.batcher import Batcher, Ran
from services.inference.errors import InferenceFailed

Rows = NDArray[Any]


def question(number: int, rows: int = 1) -> Rows:
    """Rows that hold the number, so that an answer can be told from every other."""
    return np.full((rows, 1, 1, 1), number, dtype=np.int64)


def echo(batch: Rows) -> Rows:
    if (batch < 0).any():
        raise ValueError("a row that the model cannot compute")
    return batch.reshape(len(batch), 1) * 2


def run(body: Callable[[Callable[..., Batcher]], Awaitable[None]]) -> None:
    async def main() -> None:
        made: list[Batcher] = []

        def make(infer: Callable[[Rows], Rows] = echo, **options: Any) -> Batcher:
            loop = asyncio.get_running_loop()
            made.append(Batcher(infer, loop=loop, **{"max_batch": 16, "queue_rows": 20_000, **options}))
            return made[-1]

        await body(make)
        for batcher in made:
            batcher.close()
            await asyncio.to_thread(batcher.thread.join, 5)
            assert not batcher.thread.is_alive()

    asyncio.run(main())


async def ask(batcher: Batcher, rows: Rows, deadline_s: float = 30) -> Rows:
    batcher.admit(len(rows))
    try:
        return await batcher.submit(rows, expires=time.perf_counter() + deadline_s)
    finally:
        batcher.release(len(rows))


def test_thousands_of_questions_at_once_each_get_their_own_answer() -> None:
    rng = np.random.default_rng(0)
    sizes, bad = rng.integers(1, 5, size=5000), rng.random(5000) < 0.02

    async def body(make: Callable[..., Batcher]) -> None:
        sizes_seen: list[int] = []
        batcher = make(on_batch=lambda ran: sizes_seen.append(ran.rows))
        numbers = [-k if bad[k] else k for k in range(1, 5000)]
        asked = [ask(batcher, question(number, int(sizes[abs(number)]))) for number in numbers]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        for number, answer in zip(numbers, answers, strict=True):
            if number < 0:
                assert isinstance(answer, InferenceFailed)
            else:
                assert isinstance(answer, np.ndarray)
                assert answer.tolist() == [[2 * number]] * int(sizes[number])
        assert max(sizes_seen) <= 16
        assert batcher.rows == 0

    run(body)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 1000), st.integers(1, 9)), max_size=40), st.integers(1, 12))
def test_no_mixture_of_sizes_and_failures_crosses_answers(questions: list[tuple[int, int]], max_batch: int) -> None:
    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(max_batch=max_batch)
        asked = [ask(batcher, question(number, rows)) for number, rows in questions]
        for (number, rows), answer in zip(questions, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if number < 0:
                assert isinstance(answer, InferenceFailed)
            else:
                assert isinstance(answer, np.ndarray)
                assert answer.tolist() == [[2 * number]] * rows

    run(body)


def test_what_arrives_during_a_run_goes_into_the_next_one_together() -> None:
    async def body(make: Callable[..., Batcher]) -> None:
        free, ran = threading.Event(), list[Ran]()

        def slow(batch: Rows) -> Rows:
            free.wait(5)
            return echo(batch)

        batcher = make(slow, on_batch=ran.append)
        asked = [asyncio.ensure_future(ask(batcher, question(k))) for k in range(1, 11)]
        await asyncio.sleep(0)
        while batcher.rows < 10:
            await asyncio.sleep(0)
        free.set()
        await asyncio.gather(*asked)
        assert len(ran) <= 2
        assert sum(one.rows for one in ran) == 10

    run(body)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_again() -> None:
    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(queue_rows=4)
        batcher.admit(3)
        with pytest.raises(Overloaded) as refused:
            batcher.admit(2)
        assert refused.value.retry_after_s >= 1
        batcher.release(3)
        assert (await ask(batcher, question(1, 4))).tolist() == [[2]] * 4

    run(body)


def test_expired_and_cancelled_requests_are_not_computed() -> None:
    async def body(make: Callable[..., Batcher]) -> None:
        free, computed = threading.Event(), list[int]()

        def slow(batch: Rows) -> Rows:
            free.wait(5)
            computed.extend(batch[:, 0, 0, 0].tolist())
            return echo(batch)

        batcher = make(slow)
        first = asyncio.ensure_future(ask(batcher, question(1)))
        await asyncio.sleep(0)
        while not batcher._inbox.empty():  # until the thread holds the first
            await asyncio.sleep(0)
        late = asyncio.ensure_future(ask(batcher, question(2), deadline_s=-1))
        gone = asyncio.ensure_future(ask(batcher, question(3)))
        last = asyncio.ensure_future(ask(batcher, question(4)))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        free.set()
        assert [(await first).item(), (await last).item()] == [2, 8]
        with pytest.raises(Overloaded, match="deadline"):
            await late
        assert computed == [1, 4]

    run(body)


def test_closing_answers_what_was_admitted_first() -> None:
    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make()
        asked = [asyncio.ensure_future(ask(batcher, question(k))) for k in range(50)]
        await asyncio.sleep(0)
        batcher.close()
        assert [answer.item() for answer in await asyncio.gather(*asked)] == [2 * k for k in range(50)]

    run(body)
