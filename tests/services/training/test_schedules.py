from __future__ import annotations

import pytest

from contracts.recipe import Schedule
from services.training.schedules import LearningRate, Patience


def after(schedule: Schedule, losses: list[float], peak: float = 1.0) -> list[float]:
    rate = LearningRate(schedule, peak, steps=len(losses))
    rates = []
    for loss in losses:
        rates.append(rate.at(0))
        rate.after_epoch({"validation/loss": loss})
    return [*rates, rate.at(0)]


def test_a_plateau_lowers_the_rate_when_the_count_reaches_the_patience() -> None:
    schedule = Schedule(name="plateau", factor=0.5, patience=2)
    assert after(schedule, [1.0, 1.1, 1.2, 1.3, 1.4]) == [1, 1, 1, 0.5, 0.5, 0.25]


def test_a_plateau_measures_min_delta_absolutely() -> None:
    schedule = Schedule(name="plateau", factor=0.5, patience=2, min_delta=1e-2)
    assert after(schedule, [1.0, 0.995, 0.991]) == [1, 1, 1, 0.5]
    assert after(schedule, [1.0, 0.995, 0.985]) == [1, 1, 1, 1]


def test_a_plateau_stops_at_its_floor() -> None:
    schedule = Schedule(name="plateau", factor=0.5, patience=1, min_lr=0.3)
    assert after(schedule, [1.0] * 4) == [1, 1, 0.5, 0.3, 0.3]


def test_one_cycle_rises_to_its_peak_and_falls_to_its_end() -> None:
    rate = LearningRate(Schedule(name="one_cycle", min_lr=0.001), 1.0, steps=100)
    rates = [rate.at(step) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 25, abs=0.04)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (29, 30)
    assert rates[100] == pytest.approx(0.001)


def test_cosine_has_no_warm_up_unless_asked_for() -> None:
    rate = LearningRate(Schedule(name="cosine"), 2.0, steps=10)
    assert rate.at(0) == 2.0
    assert rate.at(5) == pytest.approx(1.0)
    assert rate.at(10) == pytest.approx(0.0)


def test_a_constant_rate_is_constant() -> None:
    rate = LearningRate(Schedule(), 0.3, steps=10)
    assert {rate.at(step) for step in range(10)} == {0.3}


def test_patience_counts_only_epochs_in_a_row() -> None:
    patience = Patience(patience=2, higher_is_better=True)
    assert [patience.better(v) for v in (0.5, 0.4, 0.6, 0.6)] == [True, False, True, False]
    assert not patience.exhausted
    assert not patience.better(0.1)
    assert patience.exhausted
