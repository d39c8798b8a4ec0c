"""Swaps of the served version under load, and what they leave in memory."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from benchmarks.serving import arrivals, plan, summary, wire
from benchmarks.serving.family import Family, Unfit
from benchmarks.serving.load import Load
from benchmarks.serving.measured import Answer
from benchmarks.serving.servers import Place, Server
from benchmarks.serving.turn import Bench, get, of_stride, running, statuses
from contracts.registry import CHAMPION

POLL_S: Final = "0.5"
"""STRIDE_POLL_SECONDS here; its default of 2 would only make the same swaps rarer."""
TAG: Final = re.compile(rb'"version": "(\d+".{0,200}?"label": "[^"]*)"', re.DOTALL)
"""The version that an answer names, and a label, which says which bundle it is from."""
_BEHIND_S: Final = 0.1
"""Counted to a swap behind the new version's first answer: the old one is drained and freed."""
_LONGEST_S: Final = 20.0
"""From the alias to the version's first answer; beyond, the swap has not happened."""
_AHEAD_S: Final = 1.0
"""Of load before the first swap: the version before it has to be seen in answers."""
_EARLY: Final = 5
"""Memory is compared with what it is after so many swaps."""


@dataclass(frozen=True, slots=True)
class Swap:
    """One version's first answer, on `time.perf_counter`'s clock."""

    version: str
    at: float


def measure(bench: Bench, server: Server, place: Place, versions: Sequence[str], peak: float) -> dict[str, Any]:
    """`plan.swaps` swaps at `plan.LOAD` of the peak, and memory after all of them against after the fifth.

    Args:
        versions: of `place.registered`, whose bundles name themselves `v1`, `v2` … in their labels, in this order.
        peak: requests a second that the server answers at most.

    Raises:
        Unfit: the service ends, or a swap does not happen.
    """
    place = replace(place, settings={**place.settings, "STRIDE_POLL_SECONDS": POLL_S})
    turns = _Turns(place, versions)
    wanted = bench.plan.swaps
    promote(place.registry, place.registered, versions[0])
    with running(bench, server, place) as (family, _):
        load = Load(place.port, [server.request(png) for png in bench.pngs], tag=TAG)
        load.closed(16, 1.0)
        for _ in range(_EARLY):
            turns.swap()
        early = _memory(load, family)
        fetched = _load_seconds(place)
        seconds = _AHEAD_S + wanted * bench.plan.swap_every_s
        mover = threading.Thread(target=turns.under_load, args=(wanted, bench.plan.swap_every_s), daemon=True)
        mover.start()
        schedule = arrivals.poisson(plan.LOAD * peak, seconds, seed=3)
        measured = load.open(schedule, seconds, connections=plan.MOST_CONNECTIONS, warm=64)
        mover.join(timeout=_LONGEST_S * 2)
        if mover.is_alive():
            raise Unfit(f"{server.title}: the swaps under load did not end; its log is {family.log}")
        work_s = (_load_seconds(place) - fetched) / max(1, turns.moved)
        found = judge(measured.answers, dict(zip(versions, range(1, len(versions) + 1), strict=True)), work_s=work_s)
        found |= {"wanted": wanted, "rate": plan.LOAD * peak, "resent": measured.resent, "problem": turns.problem}
        found["statuses"] = statuses(measured)
        found["memory"] = None
        if bench.plan.all_swaps:
            for _ in range(bench.plan.all_swaps - _EARLY - wanted):
                turns.swap()
            found["memory"] = {"swaps": bench.plan.all_swaps, "early": early, "late": _memory(load, family)}
    return found


def judge(answers: Sequence[Answer], numbers: Mapping[str, int], *, work_s: float) -> dict[str, Any]:
    """What the answers say of the swaps that happened among them.

    Args:
        numbers: what the labels of each version end with: 1, 2 … in the order in which they are served in turns.
        work_s: how long the service worked at a swap: fetched, verified, loaded and proved a version.
    """
    answers = sorted(answers, key=lambda answer: answer.done)
    swaps: list[Swap] = []
    mixed = failed = 0
    current: str | None = None
    following = {version: numbers[version] % len(numbers) + 1 for version in numbers}
    for answer in answers:
        if answer.status != 200 or answer.tag is None:
            failed += 1
            continue
        name, _, rest = answer.tag.partition(b'"')
        version = name.decode()
        if numbers.get(version) != _number(rest):
            mixed += 1
        # What the version before still answers behind the new one's first answer is no swap back.
        if current is None or following.get(current) == numbers.get(version):
            if current is not None:
                swaps.append(Swap(version, answer.done))
            current = version
    windows = [(swap.at - max(1.5 * work_s, _BEHIND_S), swap.at + _BEHIND_S) for swap in swaps]
    inside: list[float] = []
    outside: list[float] = []
    for answer in answers:
        if answer.status == 200:
            meets = any(answer.done >= begins and answer.due <= ends for begins, ends in windows)
            (inside if meets else outside).append(answer.done - answer.due)
    during, apart = summary.latencies(inside), summary.latencies(outside)
    ratio = during["p99"] / apart["p99"] if during["p99"] and apart["p99"] else None
    return {
        "swaps": len(swaps),
        "answers": len(answers),
        "failed": failed,
        "mixed": mixed,
        "work_s": work_s,
        "during": {"answers": len(inside), **during},
        "outside": {"answers": len(outside), **apart},
        "p99_ratio": ratio,
    }


class _Turns:
    """Moves the alias from one version to the next."""

    def __init__(self, place: Place, versions: Sequence[str]) -> None:
        self._place = place
        self._versions = versions
        self._at = 0
        self.moved = 0
        self.problem: str | None = None

    def swap(self) -> None:
        """The next version, and wait until it is served."""
        self._at = (self._at + 1) % len(self._versions)
        version = self._versions[self._at]
        promote(self._place.registry, self._place.registered, version)
        self.moved += 1
        url = f"http://{wire.HOST}:{self._place.port}"
        until = time.monotonic() + _LONGEST_S
        while of_stride(url, self._place.registered) != version:
            if time.monotonic() > until:
                raise Unfit(f"version {version} of {self._place.registered} was not served within {_LONGEST_S:g} s")
            time.sleep(0.2)

    def under_load(self, count: int, every_s: float) -> None:
        """In a thread of its own: as many, no more often than that."""
        self.moved = 0
        started = time.monotonic() + _AHEAD_S
        try:
            for number in range(count):
                time.sleep(max(0.0, started + number * every_s - time.monotonic()))
                self.swap()
        except (Unfit, OSError, ValueError) as error:
            self.problem = str(error)


def promote(registry: str, name: str, version: str) -> None:
    """Move the champion's alias, over the registry's own API."""
    body = json.dumps({"name": name, "alias": CHAMPION, "version": version}).encode()
    request = urllib.request.Request(  # noqa: S310 - an address of this machine
        f"{registry}/api/2.0/mlflow/registered-models/alias", body, {"Content-Type": "application/json"}
    )
    with wire.direct().open(request, timeout=30) as answer:
        answer.read()


def _memory(load: Load, family: Family) -> int:
    """Resident bytes after the same load each time: a new version's session takes its memory when it is asked."""
    load.closed(64, 1.0)
    time.sleep(0.5)
    return family.memory()


def _load_seconds(place: Place) -> float:
    """Seconds that the service has worked at versions so far, as its metrics say."""
    body = get(f"http://{wire.HOST}:{place.port}/metrics") or b""
    found = re.findall(rb"^stride_model_(?:fetch|load)_seconds_sum\{[^}]*\} (\S+)$", body, re.MULTILINE)
    return sum(float(value) for value in found)


def _number(label: bytes) -> int | None:
    found = re.search(rb" v(\d+)$", label)
    return int(found[1]) if found else None
