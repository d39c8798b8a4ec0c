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


TWO_THREADS = tuple(replace(plan, threads=2) for plan in FIRST)


def measured_with_threads(trial: Trial, *, weights: int = 0, seconds: float = 0.2) -> Plan:
    measurement = Measurement(trial, "cpu", seconds, weights)
    return measurement.choose(TWO_THREADS, steps=0, compiling=False, capturing=True)


def test_a_machine_that_becomes_slower_meanwhile_makes_no_other_choice() -> None:
    """What was slower at first is not taken for figures from a better time."""
    prepared: list[str] = []

    def trial(plan: Plan) -> Step:
        prepared.append(plan.name)
        slower = 3 if len(prepared) > len(TWO_THREADS) else 1
        alone = 2 if plan.threads == 1 else 1
        return trial_of({"fp32": 6 * slower, "fp32+cl": 4 * slower, "bf16+cl": 2 * slower * alone})(plan)

    plan = measured_with_threads(trial)
    assert plan.name == "bf16 channels_last, 2 threads"
    assert [candidate.verdict for candidate in plan.candidates] == ["slower", "slower", "taken", "slower", "slower"]
    assert plan.candidates[2].milliseconds == pytest.approx(6)


def test_what_was_too_little_of_a_gain_is_told_so_later_on() -> None:
    plan = measured_with_threads(trial_of({"fp32": 9, "fp32+cl": 6, "bf16+cl": 5.8}))
    assert (plan.precision, plan.channels_last) == ("fp32", True)
    assert plan.candidates[2].verdict == "gains less than 10%"


def test_without_memory_for_another_turn_the_first_one_counts() -> None:
    prepared: list[str] = []

    def trial(plan: Plan) -> Step:
        prepared.append(plan.name)
        if len(prepared) > len(TWO_THREADS):
            raise MemoryError("can't allocate memory: you tried to allocate 1000 bytes")
        return trial_of({"fp32": 6, "fp32+cl": 4, "bf16+cl": 2})(plan)

    plan = measured_with_threads(trial)
    assert plan.name == "fp32 channels_last, 2 threads"  # the fastest that did not fail
    assert [candidate.verdict.partition(":")[0] for candidate in plan.candidates] == [
        "slower",
        "taken",
        "out of memory",
        "out of memory",
        "out of memory",
    ]


def test_large_weights_are_in_memory_once_and_their_figures_stay() -> None:
    there: list[str] = []
    most = [0]

    def trial(plan: Plan) -> Step:
        step = trial_of({"fp32": 6, "fp32+cl": 4, "bf16+cl": 2})(plan)

        class Held:
            def __init__(self) -> None:
                there.append(plan.name)
                most[0] = max(most[0], len(there))

            def __call__(self) -> Tensor | float:
                return step()

            def __del__(self) -> None:
                there.remove(plan.name)

        return Held()

    plan = measured_with_threads(trial, weights=2**30)
    assert (plan.precision, most[0]) == ("bf16", 1)
    assert plan.candidates[2].milliseconds == pytest.approx(2)


def test_a_precision_that_is_asked_for_takes_turns_with_itself_on_one_thread() -> None:
    prepared: list[str] = []

    def trial(plan: Plan) -> Step:
        prepared.append(plan.name)
        return trial_of({"bf16+cl": 1.0 * plan.threads})(plan)

    measurement = Measurement(trial, "cpu", 0.1, weights=0)
    plan = measurement.choose(TWO_THREADS[2:], steps=0, compiling=False, capturing=True)
    assert prepared == ["bf16 channels_last, 2 threads", "bf16 channels_last, 1 thread"]
    assert plan.name == "bf16 channels_last, 1 thread"


def test_the_rate_of_steps_leaves_the_first_ones_out() -> None:
    waits = iter([9.0, 9.0, 9.0, 0.1, 0.2, 0.1, 0.1, 5.0])
    assert steps_per_second(lambda: time.sleep(next(waits)), "cpu", seconds=0.45) == pytest.approx(10)
