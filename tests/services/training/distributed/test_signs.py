from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from services.training.distributed import signs as module
from services.training.distributed.signs import Signs


class Gone:
    """A store whose holder was killed."""

    def check(self, _: list[str]) -> bool:
        raise RuntimeError("Connection reset by peer")

    def set(self, *_: str) -> None:
        raise RuntimeError("Connection reset by peer")


def _noting(calls: list[Any], done: threading.Event) -> Callable[..., None]:
    def call(*given: int) -> None:
        calls.append(given)
        done.set()

    return call


def test_a_problem_is_told_with_the_worker_that_has_it() -> None:
    store = HashStore()
    first, second = Signs(store, first=True), Signs(store, first=False)
    assert first.problem() is None
    second.tell_problem(1, "data.path 'x' leads nowhere.")
    assert first.problem() == (1, "data.path 'x' leads nowhere.")


def test_it_is_over_once_the_first_worker_has_left_or_the_store_is_gone() -> None:
    store = HashStore()
    first, second = Signs(store, first=True), Signs(store, first=False)
    assert not second.wait_until_over(0.0)
    first.tell_over()
    assert second.over()
    gone = Signs(Gone(), first=False)
    assert gone.over()
    assert gone.problem() is None
    gone.tell_problem(1, "nobody hears it")


def test_a_worker_that_hangs_is_ended_once_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []
    done = threading.Event()
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    monkeypatch.setattr(module, "_LEAVE_S", 0.01)
    monkeypatch.setattr(os, "_exit", _noting(ended, done))
    store = HashStore()
    signs = Signs(store, first=False)
    signs.start()
    store.set("over", "1")
    assert done.wait(10)
    signs.stop()
    assert ended == [(0,)]


def test_signals_are_the_first_workers_to_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Any] = []
    done = threading.Event()
    for name in ("_POLL_S", "_LEAVE_S", "_DEAF_S"):
        monkeypatch.setattr(module, name, 0.01)
    monkeypatch.setattr(os, "_exit", _noting(ended, done))
    before = signal.getsignal(signal.SIGTERM)
    signs = Signs(HashStore(), first=False)
    signs.start()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        assert done.wait(10)
    finally:
        signs.stop()
    assert ended == [(143,)]  # after the time that the first one has to save, it ends all the same
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_first_worker_ends_as_on_sigterm_where_whoever_started_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    done = threading.Event()
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    monkeypatch.setattr(os, "kill", _noting(sent, done))
    signs = Signs(Gone(), first=True)
    signs.start()
    assert done.wait(10)
    signs.stop()
    assert sent == [(os.getpid(), signal.SIGTERM)]
