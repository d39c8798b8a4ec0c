"""services.inference.batcher where the loop and the thread share one core: what is quick stays the loop's."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from contracts.errors import Overloaded
from services.inference.batch import Ran
from services.inference.batcher import Batcher
from tests.services.inference.questions import Rows, ask, echo, question, run


def test_what_comes_while_the_thread_has_something_slow_is_run_on_the_loop_after_it() -> None:
    """Were it given to the thread, a load that the loop can just bear would never come back from there."""
    here = threading.get_ident()
    go, busy = threading.Event(), threading.Event()
    runs: list[tuple[bool, int]] = []

    def infer(batch: Rows) -> Rows:
        runs.append((threading.get_ident() == here, len(batch)))
        if batch[0, 0, 0, 0] == 7:
            busy.set()
            go.wait(20)
        return echo(batch)

    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(infer, at_once_s=1.0, alone=True, row_s=1e-6)
        batcher.admit(1)
        slow = batcher.submit(question(7), expires=float("inf"), aside=True)
        await asyncio.to_thread(busy.wait, 20)
        quick = [asyncio.ensure_future(ask(batcher, question(number))) for number in range(1, 6)]
        await asyncio.sleep(0.02)
        assert not any(one.done() for one in quick)
        go.set()
        assert [(await one).tolist() for one in quick] == [[[2 * number]] for number in range(1, 6)]
        await slow
        batcher.release(1)

    run(body)
    assert runs == [(False, 1), (True, 5)]


def test_what_is_near_does_not_wait_behind_all_that_is_slow() -> None:
    """Slow things may come without end; the thread takes the quick ones in their turn."""
    numbers: list[int] = []
    go, busy = threading.Event(), threading.Event()

    def infer(batch: Rows) -> Rows:
        numbers.extend(batch[:, 0, 0, 0].tolist())
        busy.set()
        go.wait(20)
        return echo(batch)

    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(infer, at_once_s=1.0, alone=True, row_s=1e-6, max_batch=1)
        batcher.admit(4)
        slow = [batcher.submit(question(number), expires=float("inf"), aside=True) for number in (1, 2)]
        await asyncio.to_thread(busy.wait, 20)
        quick = asyncio.ensure_future(ask(batcher, question(9)))
        await asyncio.sleep(0.02)
        slow += [batcher.submit(question(number), expires=float("inf"), aside=True) for number in (3, 4)]
        go.set()
        await asyncio.gather(quick, *slow)
        batcher.release(4)

    run(body)
    assert numbers == [1, 2, 9, 3, 4]


@pytest.mark.parametrize("fate", ["cancelled", "late"])
def test_what_is_near_is_run_where_the_thread_had_nothing_to_run_in_the_end(fate: str) -> None:
    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(echo, at_once_s=1.0, alone=True, row_s=1e-6)
        batcher.admit(1)
        expires = 0.0 if fate == "late" else float("inf")
        given_up = batcher.submit(question(1), expires=expires, aside=True)
        if fate == "cancelled":
            given_up.cancel()
        assert (await asyncio.wait_for(ask(batcher, question(2)), 10)).tolist() == [[4]]
        await asyncio.gather(given_up, return_exceptions=True)
        batcher.release(1)

    run(body)


def test_more_than_may_hold_up_the_loop_is_run_in_pieces_and_it_has_its_turns_between_them() -> None:
    runs: list[int] = []
    turns: list[int] = []

    def infer(batch: Rows) -> Rows:
        runs.append(len(batch))
        return echo(batch)

    async def body(make: Callable[..., Batcher]) -> None:
        def forget(_: Ran) -> None:
            batcher._runs.row_s = 0.003

        batcher = make(infer, at_once_s=0.01, alone=True, row_s=0.003, on_batch=forget)
        assert batcher.piece == 3
        asked = [asyncio.ensure_future(ask(batcher, question(number))) for number in range(1, 4)]
        await asyncio.sleep(0)
        asked += [asyncio.ensure_future(ask(batcher, question(4)))]
        for _ in range(6):
            turns.append(sum(one.done() for one in asked))
            await asyncio.sleep(0)
        assert [(await one).tolist() for one in asked] == [[[2]], [[4]], [[6]], [[8]]]

    run(body)
    assert max(runs) <= 3
    assert set(turns) - {0, 4}


def test_what_a_row_costs_is_processor_time_for_the_neighbours_cost_the_rest() -> None:
    here = threading.get_ident()
    ran_here: list[bool] = []

    def infer(batch: Rows) -> Rows:
        ran_here.append(threading.get_ident() == here)
        time.sleep(0.05)
        return echo(batch)

    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(infer, at_once_s=0.03, alone=True, row_s=1e-4)
        for number in range(4):
            await ask(batcher, question(number))
        assert batcher._runs.row_s < 0.02

    run(body)
    assert all(ran_here)


def test_what_a_row_makes_others_wait_is_told_by_the_clock() -> None:
    def infer(batch: Rows) -> Rows:
        time.sleep(0.05)  # as a neighbour on the same core would make it
        return echo(batch)

    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(infer, at_once_s=0.03, alone=True, row_s=1e-4)
        for number in range(20):
            await ask(batcher, question(number))
        batcher.admit(30)
        with pytest.raises(Overloaded, match="the deadline would pass"):
            batcher.check(1, within_s=1.0)
        batcher.release(30)

    run(body)


def test_a_row_that_is_slow_by_itself_goes_through_the_thread() -> None:
    here = threading.get_ident()
    ran_here: list[bool] = []

    def infer(batch: Rows) -> Rows:
        ran_here.append(threading.get_ident() == here)
        return echo(batch)

    async def body(make: Callable[..., Batcher]) -> None:
        batcher = make(infer, at_once_s=0.03, alone=True, row_s=0.5)
        assert not batcher.takes_now(1)
        assert (await ask(batcher, question(1))).tolist() == [[2]]

    run(body)
    assert ran_here == [False]
