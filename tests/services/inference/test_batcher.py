"""services.inference.batcher: every answer to its own question, and only for those who still wait."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import Overloaded
from services.inference.batch import Ran
from services.inference.batcher import Batcher
from services.inference.errors import InferenceFailed
from tests.services.inference.questions import Rows, ask, echo, question, run

Fate = Literal["answered", "fails", "cancelled at once", "cancelled later", "expired"]


async def live(batcher: Batcher, number: int, fate: Fate, rows: int) -> None:
    """Ask one question, and check that it ends as its fate says."""
    sent = question(-number if fate == "fails" else number, rows)
    asked = asyncio.ensure_future(ask(batcher, sent, deadline_s=-1 if fate == "expired" else 30))
    if fate.startswith("cancelled"):
        for _ in range(1 if fate == "cancelled at once" else number % 50):
            await asyncio.sleep(0)
        if asked.cancel():
            with pytest.raises(asyncio.CancelledError):
                await asked
            return
    if fate in ("fails", "expired"):
        with pytest.raises(InferenceFailed if fate == "fails" else Overloaded):
            await asked
    else:
        assert (await asked).tolist() == [[2 * number]] * rows


@pytest.mark.parametrize(
    ("seed", "at_once_s", "alone"),
    [
        (0, 0.0, False),
        (1, 0.0, False),
        (2, 0.0, False),
        (3, 0.01, False),
        (4, 60.0, False),
        (5, 60.0, True),
        (6, 1e-5, True),
    ],
)
def test_ten_thousand_questions_each_get_their_own_answer_whatever_happens_to_the_others(
    seed: int, at_once_s: float, alone: bool
) -> None:
    rng = np.random.default_rng(seed)
    count = 10_000
    fates: list[Fate] = rng.choice(get_args(Fate), size=count, p=(0.7, 0.05, 0.1, 0.1, 0.05)).tolist()
    sizes = rng.integers(1, 5, size=count).tolist()
    computed: list[int] = []
    threads: set[int] = set()
    at_a_time = threading.Lock()

    def infer(batch: Rows) -> Rows:
        assert at_a_time.acquire(blocking=False)
        try:
            threads.add(threading.get_ident())
            computed.extend(batch[:, 0, 0, 0].tolist())
            return echo(batch)
        finally:
            at_a_time.release()

    async def body(make: Callable[..., Batcher]) -> None:
        ran: list[Ran] = []
        batcher = make(infer, on_batch=ran.append, at_once_s=at_once_s, alone=alone)
        numbers = iter(range(1, count - 1))

        async def client() -> None:
            for number in numbers:
                await live(batcher, number, fates[number], sizes[number])

        await asyncio.gather(*(client() for _ in range(200)))
        assert batcher.rows == 0
        # The crowd may have kept the thread busy all the time, so the last one asks alone.
        await live(batcher, count - 1, "answered", 1)
        assert max(one.rows for one in ran) <= 16
        batcher.close()
        await asyncio.to_thread(batcher.thread.join, 5)
        assert batcher._submitted == batcher._settled  # and nothing is left behind the answers either

    fates[-1] = "answered"
    run(body)
    assert at_once_s < 1 or len(threads) == 2
    numbers = [abs(number) for number in computed]
    assert not {number for number in numbers if fates[number] == "expired"}


def test_what_is_quick_is_run_on_the_loop_together_with_all_that_came_beside_it_and_all_else_in_the_thread() -> None:
    here = threading.get_ident()
    runs: list[tuple[bool, int]] = []

    def infer(batch: Rows) -> Rows:
        runs.append((threading.get_ident() == here, len(batch)))
        return echo(batch)

    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(infer, at_once_s=1.0)
        await ask(batcher, question(1))  # how quick it is, nobody knows yet
        await asyncio.gather(*(ask(batcher, question(number)) for number in range(20)))
        batcher._runs.row_s = 0.3
        await asyncio.gather(*(ask(batcher, question(number)) for number in range(4)))
        batcher._runs.row_s = 0.0001
        batcher.admit(1)
        await batcher.submit(question(1), expires=float("inf"), aside=True)
        batcher.release(1)

    run(body)
    assert runs[:3] == [(False, 1), (True, 16), (True, 4)]
    assert {on_the_loop for on_the_loop, _ in runs[3:]} == {False}


def test_nothing_is_run_on_the_loop_while_the_thread_runs() -> None:
    busy, go, here = threading.Event(), threading.Event(), threading.get_ident()
    ran_here: list[bool] = []

    def infer(batch: Rows) -> Rows:
        ran_here.append(threading.get_ident() == here)
        if batch[0, 0, 0, 0] == 7:
            busy.set()
            go.wait(20)
        return echo(batch)

    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(infer, at_once_s=1.0)
        await ask(batcher, question(1))
        near = asyncio.ensure_future(ask(batcher, question(2)))
        await asyncio.sleep(0)  # it waits for the end of this round, when something comes to the thread
        batcher.admit(1)
        long = batcher.submit(question(7), expires=float("inf"), aside=True)
        busy.wait(20)
        later = asyncio.ensure_future(ask(batcher, question(3)))
        await asyncio.sleep(0.01)
        assert [near.done(), later.done()] == [False, False]
        go.set()
        assert [(await one).tolist() for one in (near, later, long)] == [[[4]], [[6]], [[14]]]
        batcher.release(1)

    run(body)
    assert not any(ran_here)


def test_a_model_that_answers_another_number_of_rows_answers_nobody() -> None:
    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(lambda batch: echo(batch)[1:])
        asked = [ask(batcher, question(number)) for number in range(1, 5)]
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(answer, InferenceFailed)

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
        assert ran[0].reason == "idle"
        assert {one.reason for one in ran[1:]} <= {"gathered"}

    run(body)


def test_a_batch_says_why_it_was_run() -> None:
    async def body(make: Callable[..., Batcher]) -> None:
        free, ran = threading.Event(), list[Ran]()

        def slow(batch: Rows) -> Rows:
            free.wait(5)
            return echo(batch)

        batcher = make(slow, on_batch=ran.append, max_batch=4)
        first = asyncio.ensure_future(ask(batcher, question(1)))
        await asyncio.sleep(0)
        while not batcher._inbox.empty():
            await asyncio.sleep(0)
        others = [asyncio.ensure_future(ask(batcher, question(number, 3))) for number in (2, 3)]
        await asyncio.sleep(0)
        free.set()
        await asyncio.gather(first, *others)
        assert [(one.rows, one.reason) for one in ran] == [(1, "idle"), (3, "full"), (3, "gathered")]

    run(body)


def test_who_would_miss_the_deadline_is_refused_at_once_but_never_the_first_in_line() -> None:
    async def body(make: Callable[..., Batcher]) -> None:
        free = threading.Event()

        def slow(batch: Rows) -> Rows:
            free.wait(5)
            return echo(batch)

        batcher = make(slow)
        batcher._runs.waited_s = 0.1
        batcher.admit(40, within_s=1)  # nobody is before it
        with pytest.raises(Overloaded, match=r"the deadline would pass: 40 images are waiting, about 4\.0 s"):
            batcher.admit(1, within_s=1)
        batcher.admit(1, within_s=10)
        batcher.release(41)
        free.set()

    run(body)


def test_the_given_up_keep_their_place_until_the_thread_has_come_to_them() -> None:
    """Their images are in memory so long: clients that leave at once must not be able to fill it."""

    async def body(make: Callable[..., Batcher]) -> None:
        free, begun = threading.Event(), threading.Event()

        def slow(batch: Rows) -> Rows:
            begun.set()
            free.wait(5)
            return echo(batch)

        batcher = make(slow, queue_rows=10)
        for number in range(1, 11):
            gone = asyncio.ensure_future(ask(batcher, question(number)))
            await asyncio.sleep(0)
            await asyncio.to_thread(begun.wait, 5)  # what is cancelled before the thread takes it, it does not compute
            gone.cancel()
            await asyncio.sleep(0)
        assert batcher.rows == 0
        with pytest.raises(Overloaded):
            batcher.admit(1)
        free.set()
        while batcher._submitted != batcher._settled:
            await asyncio.sleep(0.001)
        assert (await ask(batcher, question(1))).item() == 2

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


def test_an_idle_batcher_holds_no_images() -> None:
    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make()
        sent = question(1)
        left = weakref.ref(sent)
        assert (await ask(batcher, sent)).item() == 2
        del sent
        until = time.monotonic() + 10
        while left() is not None:
            assert time.monotonic() < until
            await asyncio.sleep(0.01)

    run(body)
