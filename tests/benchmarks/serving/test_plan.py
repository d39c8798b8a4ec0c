"""Minutes divided among what is measured."""

from __future__ import annotations

import pytest

from benchmarks.serving.plan import Plan, plan


def seconds(found: Plan, servers: int) -> float:
    """What the run takes by the plan's own reckoning."""
    starts = found.repeats * servers * 6
    turns = found.repeats * (servers * found.turn_s + 2 * found.floor_s)
    return 40 + starts + turns + found.reserve_s


@pytest.mark.parametrize(
    ("servers", "minutes", "quick"), [(8, None, False), (8, None, True), (8, 60, False), (3, 10, False)]
)
def test_a_plan_fits_into_its_minutes(servers: int, minutes: float | None, quick: bool) -> None:
    found = plan(servers=servers, minutes=minutes, quick=quick)
    assert found.minutes == (minutes or (3 if quick else 24))
    assert seconds(found, servers) <= 60 * found.minutes * 1.02


def test_the_default_measures_five_times_and_a_quick_one_once() -> None:
    assert (plan(servers=8).repeats, plan(servers=8).swaps, plan(servers=8).all_swaps) == (5, 20, 50)
    assert (plan(servers=8, quick=True).repeats, plan(servers=8, quick=True).all_swaps) == (1, 0)


def test_more_minutes_lengthen_the_measurements_and_fewer_servers_alone_do_not() -> None:
    assert plan(servers=8, minutes=60).closed_s > plan(servers=8).closed_s
    assert plan(servers=2).closed_s <= 2.5
    assert plan(servers=2).closed_s >= plan(servers=8).closed_s


def test_too_few_minutes_still_measure_something() -> None:
    assert plan(servers=8, minutes=2).closed_s > 0.3
