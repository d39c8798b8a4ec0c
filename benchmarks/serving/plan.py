"""How long everything is measured, from the minutes that the whole run may take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CONNECTIONS: Final = (1, 16, 64)
LOAD: Final = 0.7
"""Of a server's own peak: what the open loop asks for, and what swaps happen under."""
OVERLOAD: Final = 2.0
BURST: Final = 64
BURST_EVERY_S: Final = 0.75
IN_TIME_S: Final = 1.0
"""From when a request was due to its answer: what comes later is no goodput."""
MOST_CONNECTIONS: Final = 6000
WARM_CONNECTIONS: Final = 1024
MINUTES: Final = 24.0
QUICK_MINUTES: Final = 3.0
_START_S: Final = 6.0
"""What a server takes to start and to end, on average over all of them; Ray and BentoML more, the bare ones less."""
_ASIDE_S: Final = 2.0
"""Of each turn: the proof, the warm-up, what is waited for behind the schedules."""
_PREPARE_S: Final = 40.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Seconds, counts and repeats."""

    minutes: float
    repeats: int
    closed_s: float
    """At each of `CONNECTIONS`."""
    poisson_s: float
    burst_s: float
    overload_s: float
    floor_s: float
    """Of bare onnxruntime, each time it is its turn."""
    tensors_s: float
    """Of the server, and as much of bare onnxruntime, each time."""
    swaps: int
    """Under load."""
    all_swaps: int
    """Before resident memory is compared; 0: it is not."""
    swap_every_s: float = 2.5

    @property
    def turn_s(self) -> float:
        """What one server's turn takes once it has started."""
        return len(CONNECTIONS) * self.closed_s + self.poisson_s + self.burst_s + self.overload_s + _ASIDE_S

    @property
    def reserve_s(self) -> float:
        """What has to be left for the tensors and the swaps when the turns are over."""
        return 20 + self.all_tensors_s + self.swaps * self.swap_every_s + self.all_swaps * 1.5

    @property
    def all_tensors_s(self) -> float:
        """Of both graphs, served and bare."""
        return 4 * self.tensors_s * self.repeats


def plan(*, servers: int, minutes: float | None = None, quick: bool = False) -> Plan:
    """Divide the minutes.

    Args:
        servers: how many take turns.
        minutes: of the whole run, but for what is installed; less than the default shortens every measurement, more
            lengthens it.
        quick: one repeat and few swaps.
    """
    budget = minutes or (QUICK_MINUTES if quick else MINUTES)
    whole = _sized(1.0, budget, quick=quick)
    fixed = _PREPARE_S + whole.repeats * servers * (_START_S + _ASIDE_S) + whole.reserve_s
    fixed -= whole.all_tensors_s
    measuring = whole.repeats * (servers * (whole.turn_s - _ASIDE_S) + 2 * whole.floor_s) + whole.all_tensors_s
    factor = (budget * 60 - fixed) / measuring
    # Longer than the default only where it was asked for: fewer peers make a shorter run, not a longer measurement.
    return _sized(min(max(factor, 0.15), 10.0 if minutes else 1.0), budget, quick=quick)


def _sized(factor: float, minutes: float, *, quick: bool) -> Plan:
    return Plan(
        minutes=minutes,
        repeats=1 if quick else 5,
        closed_s=2.5 * factor,
        poisson_s=3.0 * factor,
        burst_s=max(BURST_EVERY_S, 3.0 * factor),
        overload_s=max(1.0, 3.0 * factor),
        floor_s=1.0 * factor,
        tensors_s=max(0.5, 1.5 * factor),
        swaps=3 if quick else 20,
        all_swaps=0 if quick else 50,
    )
