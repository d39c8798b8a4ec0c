"""Latencies in numbers, and the arrivals that they are measured with."""

from __future__ import annotations

import itertools
import statistics

import pytest

from benchmarks.serving import arrivals, summary


def test_percentiles_are_of_the_nearest_rank_in_milliseconds() -> None:
    found = summary.latencies(number / 1000 for number in range(1, 2001))
    assert found == pytest.approx({"p50": 1000, "p90": 1800, "p99": 1980, "p99.9": 1998, "max": 2000})


def test_a_percentile_that_hardly_any_answer_lies_beyond_is_not_told() -> None:
    found = summary.latencies([0.001] * 199)
    assert found["p90"] == pytest.approx(1)
    assert found["p99"] is None
    assert found["p99.9"] is None
    assert summary.latencies([0.001] * 200)["p99"] == pytest.approx(1)
    assert set(summary.latencies([]).values()) == {None}


def test_the_middle_and_the_spread_leave_out_what_was_not_measured() -> None:
    assert summary.middle([3.0, None, 1.0, 2.0]) == 2.0
    assert summary.spread([3.0, None, 1.0, 2.0]) == (1.0, 3.0)
    assert summary.middle([None]) is None
    assert summary.spread([]) is None


def test_poisson_arrivals_have_the_rate_and_the_spread_of_independent_ones() -> None:
    found = arrivals.poisson(1000, 20, seed=1)
    gaps = [later - earlier for earlier, later in itertools.pairwise(found)]
    assert found == sorted(found)
    assert len(found) == pytest.approx(20_000, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(statistics.mean(gaps), rel=0.05)  # as an exponential has it
    assert found == arrivals.poisson(1000, 20, seed=1)


def test_bursts_come_at_once() -> None:
    assert arrivals.bursts(2, 0.5, 1.2) == [0.0, 0.0, 0.5, 0.5]
    assert arrivals.bursts(3, 1.0, 0.2) == [0.0, 0.0, 0.0]
