from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracts.errors import FitError
from services.training.device import Plan
from services.training.measurement import Measurement, Trial, steps_per_second
from tests.services.training.clock import Clock
from tests.services.training.plans import cpu_plan

Step = Callable[[], Tensor | float]
PLAIN = cpu_plan(channels_last=False)
FIRST = (PLAIN, replace(PLAIN, channels_last=True), replace(PLAIN, channels_last=True, precision="bf16"))


time = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.training.measurement.time", time)


def kind(plan: Plan) -> str:
    return plan.precision + ("+cl" if plan.channels_last else "") + ("+compiled" if plan.compiled else "")


def trial_of(milliseconds: dict[str, float]) -> Trial:
    """Steps that take as long as is said for each precision and layout."""

    def prepare(plan: Plan) -> Step:
        def step() -> float:
            time.sleep(milliseconds[kind(plan)] / 1000)
            return 1.0

        return step

    return prepare


def measured(trial: Trial, *, steps: int = 0, seconds: float = 0.05, compiling: bool = True) -> Plan:
    measurement = Measurement(trial, "cpu", seconds, weights=0)
    return measurement.choose(FIRST, steps=steps, compiling=compiling, capturing=True)


def test_the_hopeless_are_not_timed_to_the_end() -> None:
    steps = {"fp32": 0, "fp32+cl": 0, "bf16+cl": 0}

    def trial(plan: Plan) -> Step:
        def step() -> float:
            steps[kind(plan)] += 1
            time.sleep(0.02 if kind(plan) == "fp32" else 0.002)
            return 1.0

        return step

    measured(trial, seconds=0.3)
    assert steps["fp32"] <= 7 < steps["bf16+cl"]


def test_a_candidate_that_runs_out_of_memory_is_only_out() -> None:
    def trial(plan: Plan) -> Step:
        if kind(plan) == "fp32+cl":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return trial_of({"fp32": 3, "bf16+cl": 2})(plan)

    plan = measured(trial, seconds=0.05)
    assert plan.precision == "bf16"
    assert plan.candidates[1].milliseconds is None
    assert plan.candidates[1].verdict.startswith("out of memory: CUDA out of memory")


def test_memory_that_suffices_for_none_is_told() -> None:
    def trial(_: Plan) -> Step:
        raise MemoryError("can't allocate memory: you tried to allocate 1000 bytes")

    with pytest.raises(MemoryError, match="can't allocate"):
        measured(trial)


def test_what_would_fail_in_the_fit_fails_at_once() -> None:
    def trial(_: Plan) -> Step:
        raise FitError("a batch of one image cannot be fitted")

    with pytest.raises(FitError):
        measured(trial)


def test_what_compiling_costs_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.training.measurement._COMPILING_S", {"cpu": 0.0})

    def trial(plan: Plan) -> Step:
        if plan.compiled:
            time.sleep(0.5)
        return trial_of({"fp32": 4, "fp32+cl": 4, "bf16+cl": 3, "bf16+cl+compiled": 1})(plan)

    few = measured(trial, steps=100, seconds=0.05)
    assert not few.compiled
    assert few.candidates[-1].verdict == "compiling does not pay within 100 steps"
    assert measured(trial, steps=10_000, seconds=0.05).compiled


def test_a_compiler_that_fails_is_no_reason_to_stop() -> None:
    def trial(plan: Plan) -> Step:
        if plan.compiled:
            raise RuntimeError("no C++ compiler was found")
        return trial_of({"fp32": 4, "fp32+cl": 4, "bf16+cl": 2})(plan)

    plan = measured(trial, steps=1_000_000, seconds=0.05)
    assert plan.precision == "bf16"
    assert plan.candidates[-1].verdict == "failed: no C++ compiler was found"


def test_the_rate_of_steps_leaves_the_first_ones_out() -> None:
    waits = iter([9.0, 9.0, 9.0, 0.1, 0.2, 0.1, 0.1, 5.0])
    assert steps_per_second(lambda: time.sleep(next(waits)), "cpu", seconds=0.45) == pytest.approx(10)
