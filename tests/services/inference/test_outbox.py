"""services.inference.outbox: bounded in items and bytes, never waited for, and nothing that was put is forgotten."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice

import pytest

from services.inference.outbox import Outbox


def test_everything_is_sent_once_in_its_order_also_what_is_left_at_the_end() -> None:
    got: list[int] = []
    outbox: Outbox[int] = Outbox("test", got.extend, most=10_000, pause_s=0.001, soon=100)
    for number in range(5000):
        assert outbox.put(number)
    outbox.close(10)
    assert got == list(range(5000))


def test_what_a_look_leaves_is_taken_by_the_next_one_and_is_not_lost() -> None:
    looks: list[list[int]] = []
    outbox: Outbox[int] = Outbox(
        "test", lambda waiting: looks.append(list(islice(waiting, 3))), most=100, pause_s=60, soon=8
    )
    for number in range(8):
        outbox.put(number)
    until = time.monotonic() + 20
    while len(outbox):  # the eighth ended the pause
        assert time.monotonic() < until
        time.sleep(0.001)
    outbox.close(10)
    assert looks == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize(("size", "fit"), [(0, 5), (40, 2), (101, 0)])
def test_there_is_room_for_so_many_items_and_so_many_bytes_and_again_once_they_are_taken(size: int, fit: int) -> None:
    go, got = threading.Event(), threading.Semaphore(0)

    def send(waiting: Iterator[int]) -> None:
        go.wait(20)
        for _ in waiting:
            got.release()

    outbox: Outbox[int] = Outbox("test", send, most=5, most_bytes=100, pause_s=0.001, soon=1)
    assert [outbox.put(number, size) for number in range(8)].count(True) == fit
    go.set()
    for _ in range(fit):
        assert got.acquire(timeout=20)
    assert outbox.put(9, 100)
    outbox.close(10)


def test_an_error_ends_nothing() -> None:
    got: list[int] = []

    def send(waiting: Iterator[int]) -> None:
        if (one := next(waiting)) == 2:
            raise ValueError("odd")
        got.append(one)

    outbox: Outbox[int] = Outbox("test", send, most=10, pause_s=0.001, soon=1)
    for number in range(5):
        outbox.put(number)
    outbox.close(10)
    assert got == [0, 1, 3, 4]


def test_it_begins_and_ends_in_its_own_thread() -> None:
    threads: list[str] = []

    def note() -> None:
        threads.append(threading.current_thread().name)

    Outbox[int]("its-own", deque[int]().extend, most=1, pause_s=60, soon=1, begin=note, end=note).close(10)
    assert threads == ["its-own", "its-own"]
