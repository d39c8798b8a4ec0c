"""pipelines.measure: calls that are timed beside each other."""

from __future__ import annotations

import time

from pipelines.measure import ROUNDS, interleaved


def test_a_call_that_does_ten_times_the_work_takes_more_processor_time() -> None:
    timings = interleaved({"one": lambda: sum(range(2_000)), "ten": lambda: sum(range(20_000))}, seconds=0.2)

    assert timings["ten"].cpu_s > 3 * timings["one"].cpu_s > 0


def test_waiting_is_no_processor_time() -> None:
    timing = interleaved({"wait": lambda: time.sleep(0.01)}, seconds=0.01)["wait"]

    assert timing.wall_s >= 0.01
    assert timing.cpu_s < timing.wall_s / 2


def test_a_call_that_takes_longer_than_all_the_seconds_is_made_once_a_round() -> None:
    made: list[str] = []

    interleaved({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, seconds=1e-9)

    assert made == ["a", "a", "b", "b", *["a", "b"] * ROUNDS]
