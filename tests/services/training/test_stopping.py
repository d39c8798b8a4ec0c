"""Real signals to this very process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from services.training.stopping import Stopping, Terminated


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """As on a terminal: what runs in a shell's background is told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_is_raised_at_once(number: int, error: type[BaseException]) -> None:
    with Stopping(), pytest.raises(error):
        send(number)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_deferred_signal_is_noted_and_raised_at_the_end(number: int, error: type[BaseException]) -> None:
    noted: list[int | None] = []

    def run() -> None:
        with Stopping() as stopping, stopping.deferred():
            send(number)
            noted.append(stopping.number)

    with pytest.raises(error):
        run()
    assert noted == [number]


def test_within_deferred_a_block_may_ask_for_signals_at_once() -> None:
    reached: list[str] = []

    def run() -> None:
        with Stopping() as stopping, stopping.deferred():
            with stopping.at_once():
                send(signal.SIGTERM)
                reached.append("the end of validation")
            reached.append("the next step")

    with pytest.raises(Terminated):
        run()
    assert reached == []


def test_what_was_noted_before_is_raised_when_such_a_block_begins() -> None:
    reached: list[str] = []

    def run() -> None:
        with Stopping() as stopping, stopping.deferred():
            send(signal.SIGTERM)
            reached.append("the end of the step")
            with stopping.at_once():
                reached.append("validation")

    with pytest.raises(Terminated):
        run()
    assert reached == ["the end of the step"]


def test_after_such_a_block_signals_wait_again() -> None:
    reached: list[str] = []

    def run() -> None:
        with Stopping() as stopping, stopping.deferred():
            with stopping.at_once():
                reached.append("validation")
            send(signal.SIGTERM)
            reached.append("the end of the step")

    with pytest.raises(Terminated):
        run()
    assert reached == ["validation", "the end of the step"]


def test_the_second_signal_does_not_wait() -> None:
    reached: list[str] = []

    def run() -> None:
        with Stopping() as stopping, stopping.deferred():
            send(signal.SIGTERM)
            reached.append("after the first")
            send(signal.SIGINT)
            reached.append("after the second")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert reached == ["after the first"]


def test_the_handlers_are_as_before_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stopping():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_an_error_in_a_deferred_block_is_not_replaced() -> None:
    def run() -> None:
        with Stopping() as stopping, stopping.deferred():
            send(signal.SIGTERM)
            raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        run()


def test_in_another_thread_nothing_is_set() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with Stopping():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_job_in_the_background_goes_on_ignoring_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Stopping() as stopping, stopping.deferred():
            send(signal.SIGINT)
            assert stopping.number is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_process_that_is_terminated_exits_with_143() -> None:
    code = (
        "import os, signal\n"
        "from services.training.stopping import Stopping\n"
        "with Stopping():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 143
