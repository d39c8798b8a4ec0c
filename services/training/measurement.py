"""Candidates for the plan of a fit, timed in turns on throw-away copies; `services.training.speed` says which ones.

They take turns step by step, so that what else runs on the machine slows all of them alike, and the median counts.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from contracts.errors import StrideError
from services.training.allocator import reusing_memory
from services.training.device import Candidate, Plan
from services.training.memory import is_out_of_memory

_GAIN: Final = 1.1
"""How much faster a lower precision must be measured to be taken."""
_HOPELESS: Final = 1.5
"""How much slower than the fastest a candidate may be to be timed on."""
_ROUNDS: Final = 4
"""Timed steps of each candidate before one is given up, where there is time for them; the loss is compared after."""
_TOGETHER: Final = 2**28
"""Bytes of weights up to which all candidates' copies are in memory at once."""
_COMPILING_S: Final = {"cpu": 60.0, "cuda": 30.0}
"""What compiling is taken to cost before it has been measured."""

Trial = Callable[[Plan], Callable[[], Tensor | float]]
"""Makes, for a plan, a function that takes a training step on throw-away copies and gives its loss."""


@dataclass(slots=True, eq=False)
class _Timed:
    """A candidate while it is measured."""

    plan: Plan
    seconds: list[float] = field(default_factory=list)
    losses: list[Tensor | float] = field(default_factory=list)
    compile_seconds: float = 0.0
    failed: str = ""
    verdict: str = ""
    """Why it is not taken, once others are timed on without it."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds and not self.failed else math.inf


class Measurement:
    """Times candidates and keeps the table."""

    def __init__(self, trial: Trial, device: str, seconds: float, weights: int) -> None:
        """Of the steps that a trial makes; see `services.training.speed.choose_plan`."""
        self._trial, self._device, self._seconds = trial, device, seconds
        self._together = weights <= _TOGETHER
        self._table: list[_Timed] = []
        self._left: list[_Timed] = []
        """Those of the table that may still be taken."""
        self._error: BaseException | None = None

    def choose(self, first: Sequence[Plan], *, steps: int, compiling: bool, capturing: bool) -> Plan:
        """The fastest that keeps the loss, with the table of all.

        Args:
            first: The candidates, a plain loop in front; on the CPU the fastest of them are tried on one thread, too.
            steps: How many the fit will take.
            compiling: Whether the fastest is tried compiled.
            capturing: Whether it is tried as a CUDA graph, on a GPU.

        Raises:
            Whatever the steps raise that would fail in the fit, too.
        """
        if self._device == "cpu" and first[0].threads > 1:
            best = self._time_threads(first)
        else:
            self._time(first, self._seconds)
            best = self._best()
        if capturing and self._device == "cuda" and best.plan.precision != "fp16":
            self._time([replace(best.plan, cuda_graph=True)], self._seconds)
            best = self._best()
        if compiling and self._may_pay(best, steps):
            # Compiled and captured at once is what inductor's own graphs are for; here it is one or the other
            self._time([replace(best.plan, cuda_graph=False, compiled=True)], self._seconds)
            best = self._best(steps=steps)
        return replace(best.plan, candidates=tuple(self._row(timed, best, steps) for timed in self._table))

    def _may_pay(self, best: _Timed, steps: int) -> bool:
        # Even at twice the speed it must bring in what compiling is taken to cost, here and again in the fit
        return best.median * steps / 2 > 2 * _COMPILING_S[self._device]

    def _time_threads(self, first: Sequence[Plan]) -> _Timed:
        """Time the candidates with all threads, and then the fastest of them in turns with others on one."""
        if len(first) == 1:
            self._time([first[0], replace(first[0], threads=1)], self._seconds)
            return self._best()
        self._time(first, self._seconds / 2)
        best = self._best()
        # The lower precision may be the slower one on one thread.
        plans = dict.fromkeys((best.plan, self._best(exact=True).plan))
        self._time([replace(plan, threads=1) for plan in plans], self._seconds / 2, beside=best)
        return self._best()

    def _time(self, plans: Iterable[Plan], seconds: float, *, beside: _Timed | None = None) -> None:
        """Time new candidates.

        Args:
            plans: Theirs.
            seconds: In all.
            beside: One that was timed before, whose figures begin anew in turns with these; what else was timed before
                was slower then, and is out: the machine may be a slower one by now. Where copies of the weights are
                too large to be in memory together, there are no turns, and the figures stay.
        """
        new = [_Timed(plan) for plan in plans]
        self._table += new
        self._left += new
        if beside is not None and self._together:
            for timed in self._table:
                if timed not in (beside, *new):
                    timed.verdict = self._verdict(timed, beside, 0)
            beside.seconds.clear()
            beside.losses.clear()
            self._left = new = [beside, *new]
        with reusing_memory():  # as in the fit; each plan opens it, too, and would give all back after every step
            for group in [new] if self._together else [[timed] for timed in new]:
                self._take_turns(group, seconds * len(group) / max(len(new), 1))
        if self._error is not None and all(timed.failed for timed in self._table):
            raise self._error

    def _take_turns(self, group: Sequence[_Timed], seconds: float) -> None:
        """One step of each candidate after the other, until the time is over; the hopeless drop out on the way."""
        running = {index: step for index, timed in enumerate(group) if (step := self._prepared(timed)) is not None}
        end = time.perf_counter() + seconds
        for number in range(10_000):
            late = time.perf_counter() > end
            if not running or (late and number >= 2):
                break
            for index in list(running):
                if not self._stepped(group[index], running[index], number):
                    del running[index]
            fastest = min((group[index].median for index in running), default=math.inf)
            if number >= _ROUNDS or late:
                running = {i: step for i, step in running.items() if group[i].median <= _HOPELESS * fastest}
        running.clear()
        _release(self._device)

    def _prepared(self, timed: _Timed) -> Callable[[], Tensor | float] | None:
        with timed.plan.computing():
            try:
                started = time.perf_counter()
                step = self._trial(timed.plan)
                torch.manual_seed(0)
                timed.losses.append(step())  # not timed: kernels are chosen and compiled, caches filled
                self._synchronize()
                if timed.plan.compiled:
                    timed.compile_seconds = time.perf_counter() - started
            except Exception as error:  # noqa: BLE001 - a candidate that cannot run is out, whatever it raised
                self._fail(timed, error)
                return None
        return step

    def _stepped(self, timed: _Timed, step: Callable[[], Tensor | float], number: int) -> bool:
        # Launching runs ahead of a GPU, so several steps are timed as one there
        times = 5 if self._device == "cuda" else 1
        with timed.plan.computing():
            torch.manual_seed(number + 1)  # the same dropout in all of them
            try:
                started = time.perf_counter()
                losses = [step() for _ in range(times)]
                self._synchronize()
                timed.seconds.append((time.perf_counter() - started) / times)
            except Exception as error:  # noqa: BLE001 - likewise
                self._fail(timed, error)
                return False
        timed.losses += losses
        return True

    def _fail(self, timed: _Timed, error: Exception) -> None:
        """Take a candidate out; what would fail in the fit just so is raised."""
        extra = timed.plan.compiled or timed.plan.cuda_graph
        if isinstance(error, StrideError) or not (extra or is_out_of_memory(error)):
            raise error
        self._error = self._error or error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
        timed.failed = f"out of memory: {reason}" if is_out_of_memory(error) else f"failed: {reason}"
        error.__traceback__ = None  # its frames hold the candidate's tensors
        _release(self._device)

    def _synchronize(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _best(self, *, steps: int = 0, exact: bool = False) -> _Timed:
        """The fastest that keeps the loss; with the steps to come, compiling is counted in.

        Args:
            steps: To come.
            exact: Only those as exact as the plain loop.
        """
        sound = self._sound(self._left) or self._sound(self._table)

        def cost(timed: _Timed) -> float:
            return timed.median + (timed.compile_seconds / steps if steps else 0.0)

        plain = self._table[0].plan
        best = min(sound, key=cost)
        full = min((timed for timed in sound if _is_exact(timed.plan, plain)), key=cost, default=best)
        return full if exact or cost(full) <= _GAIN * cost(best) else best

    def _sound(self, among: Iterable[_Timed]) -> list[_Timed]:
        return [timed for timed in among if not timed.failed and self._keeps_loss(timed)]

    def _keeps_loss(self, timed: _Timed) -> bool:
        """Whether a candidate's loss is the plain loop's after as many steps from the same weights."""
        plain = next(other for other in self._table if not other.failed)
        last = min(len(timed.losses), len(plain.losses), 1 + _ROUNDS) - 1
        mine, theirs = float(timed.losses[last]), float(plain.losses[last])
        if not math.isfinite(theirs):  # the fit itself will tell that the recipe diverges
            return timed.plan.precision == plain.plan.precision
        return abs(mine - theirs) <= 0.03 + 0.05 * abs(theirs)

    def _row(self, timed: _Timed, best: _Timed, steps: int) -> Candidate:
        loss = float(timed.losses[min(len(timed.losses), 1 + _ROUNDS) - 1]) if timed.losses else math.nan
        return Candidate(
            name=timed.plan.name,
            milliseconds=None if math.isinf(timed.median) else round(timed.median * 1e3, 4),
            loss=round(loss, 6) if math.isfinite(loss) else None,
            compile_seconds=round(timed.compile_seconds, 2),
            verdict=self._verdict(timed, best, steps),
        )

    def _verdict(self, timed: _Timed, best: _Timed, steps: int) -> str:
        if timed is best:
            return "taken"
        if timed.verdict:
            return timed.verdict
        if timed.failed:
            return timed.failed
        if not self._keeps_loss(timed):
            return "its loss is another than the plain loop's"
        if timed.compile_seconds and timed.median < best.median:
            return f"compiling does not pay within {steps:,} steps"
        return "slower" if timed.median >= best.median else "gains less than 10%"


def _is_exact(plan: Plan, plain: Plan) -> bool:
    return plan.precision == plain.precision and not plan.tf32


def _release(device: str) -> None:
    gc.collect()  # captured graphs and compiled functions stand in circles
    if device == "cuda":
        torch.cuda.empty_cache()


def steps_per_second(step: Callable[[], Any], device: str, seconds: float) -> float:
    """The median rate of a training step over `seconds` and three calls at least, after three that are not timed."""

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):  # warm-up: kernels are chosen and compiled, caches filled
        step()
    synchronize()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times)
