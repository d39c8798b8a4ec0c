"""One server's turn: started, proved equal, asked in every way, ended."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import urllib.error
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving import arrivals, plan, wire
from benchmarks.serving.family import Family, Unfit
from benchmarks.serving.load import Load, Nobody
from benchmarks.serving.measured import Measured
from benchmarks.serving.plan import Plan
from benchmarks.serving.servers import Place, Server, base_environment

EQUAL: Final = 1e-5
"""The largest difference of a probability to bare onnxruntime's."""
_READY_S: Final = 120.0
_WARM_S: Final = 0.7
_FAILED_SHARE: Final = 0.01
"""More lost or refused requests than this in a closed loop, and the server has not stood the load."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What every turn shares."""

    plan: Plan
    server_core: int
    client_core: int
    pngs: Sequence[bytes]
    work: Path
    """Where logs go."""
    registry: str
    """MLflow's address."""


@contextmanager
def running(bench: Bench, server: Server, place: Place) -> Iterator[tuple[Family, float]]:
    """The server, ready, and the seconds that took; ended with everything it made, however this is left.

    Raises:
        Unfit: it does not become ready.
    """
    family = Family(
        server.command(place),
        name=server.title,
        core=bench.server_core,
        environment={**base_environment(), **server.environment(place)},
        log=bench.work / "logs" / f"{server.name}.log",
    )
    with family:
        url = f"http://{wire.HOST}:{place.port}{server.ready}"
        yield family, family.wait(lambda: get(url) is not None, within_s=_READY_S)


@contextmanager
def scratch() -> Iterator[Path]:
    """A directory whose path is short enough for the sockets that Ray puts below it."""
    path = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with_port = [socket.create_server((wire.HOST, 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_port]
    for server in with_port:
        server.close()
    return ports


def get(url: str, *, timeout_s: float = 5.0) -> bytes | None:
    """The body of a GET; None where the answer is not 200 or there is none."""
    try:
        with wire.direct().open(url, timeout=timeout_s) as answer:
            return bytes(answer.read()) if answer.status == 200 else None
    except (OSError, urllib.error.HTTPError, ValueError):
        return None


def take(bench: Bench, server: Server, place: Place, expected: NDArray[np.float64] | None) -> dict[str, Any]:
    """The whole turn.

    Args:
        expected: bare onnxruntime's probabilities of `bench.pngs`, where the server is still to be proved equal.

    Returns:
        What was measured, for JSON.

    Raises:
        Unfit: it cannot be started, answers otherwise than bare onnxruntime, or does not stand the load.
    """
    found: dict[str, Any] = {}
    with running(bench, server, place) as (family, ready_s):
        found["start_s"] = ready_s
        if expected is not None:
            found["difference"] = prove(bench, server, place, expected)
        load = Load(place.port, [server.request(png) for png in bench.pngs])
        try:
            load.closed(16, _WARM_S)
            found["closed"] = {str(count): closed(bench, family, load, count) for count in plan.CONNECTIONS}
            found["memory"] = family.memory()
            found["peak"] = peak = max(each["rate"] for each in found["closed"].values())
            found["poisson"] = poisson(bench, family, load, peak)
            found["burst"] = burst(bench, load)
            found["overload"] = overload(bench, load, peak)
            found["memory_after"] = family.memory()
        except Nobody as error:
            detail = "ended" if family.has_ended(within_s=1) else "listens no more"
            raise Unfit(f"{server.title} {detail} under load ({error}); its log is {family.log}") from error
        if not family.alive:
            raise Unfit(f"{server.title} ended under overload; its log is {family.log}")
    return found


def prove(bench: Bench, server: Server, place: Place, expected: NDArray[np.float64]) -> float:
    """The largest difference of a probability to bare onnxruntime's, all images asked at once.

    Raises:
        Unfit: it is above `EQUAL`, or an answer is missing or cannot be read.
    """
    request = server.proof or server.request
    load = Load(place.port, [request(png) for png in bench.pngs], keep=True)
    asked = load.open([0.0] * len(bench.pngs), 0.0, connections=16, patience_s=60)
    found = np.full(expected.shape, np.nan)
    for answer in asked.answers:
        if answer.status != 200 or answer.data is None:
            shown = wire.content(answer.data)[:200] if answer.data else b"nothing"
            raise Unfit(f"{server.title} answered an image with status {answer.status}: {shown!r}")
        try:
            found[answer.number] = server.read(wire.content(answer.data))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            shown = wire.content(answer.data)[:200]
            raise Unfit(f"{server.title} gave an answer that cannot be read ({error}): {shown!r}") from error
    difference = float(np.abs(found - expected).max())
    if not difference <= EQUAL:  # also where one is missing
        raise Unfit(f"{server.title} differs from bare onnxruntime by {difference:.3g}; {EQUAL:g} is allowed")
    return difference


def closed(bench: Bench, family: Family, load: Load, connections: int) -> dict[str, Any]:
    """A closed loop: throughput, latencies, processor time a prediction."""
    before = family.cpu_s()
    measured = load.closed(connections, bench.plan.closed_s)
    cpu_s = family.cpu_s() - before
    good = measured.statuses()[200]
    if len(measured.answers) - good > _FAILED_SHARE * len(measured.answers) or not good:
        raise Unfit(f"{family.name} at {connections} connections: answers by status {statuses(measured)}")
    return {
        "rate": measured.good() / measured.seconds,
        "answers": good,
        "failed": len(measured.answers) - good,
        "cpu_ms": 1000 * cpu_s / good,
        "client": measured.client_share,
        **measured.latencies(),
    }


def poisson(bench: Bench, family: Family, load: Load, peak: float) -> dict[str, Any]:
    """Independent arrivals at `plan.LOAD` of the peak, from when each was due."""
    seconds = bench.plan.poisson_s
    schedule = arrivals.poisson(plan.LOAD * peak, seconds, seed=1)
    before = family.cpu_s()
    measured = load.open(schedule, seconds, connections=plan.MOST_CONNECTIONS, warm=64)
    cpu_s = family.cpu_s() - before
    return {
        "rate": plan.LOAD * peak,
        "cpu_ms": 1000 * cpu_s / max(1, measured.statuses()[200]),
        **_open(measured),
    }


def burst(bench: Bench, load: Load) -> dict[str, Any]:
    """`plan.BURST` requests at once, again and again, on connections that are open."""
    seconds = bench.plan.burst_s
    schedule = arrivals.bursts(plan.BURST, plan.BURST_EVERY_S, seconds)
    return _open(load.open(schedule, seconds, connections=plan.MOST_CONNECTIONS, warm=plan.BURST))


def overload(bench: Bench, load: Load, peak: float) -> dict[str, Any]:
    """Twice as much as it can answer: what is answered in time, and what becomes of the rest."""
    seconds = bench.plan.overload_s
    rate = plan.OVERLOAD * peak
    schedule = arrivals.poisson(rate, seconds, seed=2)
    measured = load.open(
        schedule, seconds, connections=plan.MOST_CONNECTIONS, warm=min(plan.WARM_CONNECTIONS, len(schedule))
    )
    seen = measured.statuses()
    goodput = measured.good(plan.IN_TIME_S) / seconds
    return {
        "rate": rate,
        "goodput": goodput,
        "goodput_share": goodput / peak,
        "refused_share": (seen[429] + seen[503]) / max(1, len(measured.answers)),
        "refusals": measured.latencies(429, 503),
        **_open(measured),
    }


def _open(measured: Measured) -> dict[str, Any]:
    lateness = sorted(measured.lateness)
    return {
        "answers": measured.statuses()[200],
        "failed": len(measured.answers) - measured.statuses()[200],
        "statuses": statuses(measured),
        "resent": measured.resent,
        "client": measured.client_share,
        "client_late_p99_ms": 1000 * lateness[int(0.99 * (len(lateness) - 1))] if lateness else None,
        **measured.latencies(),
    }


def statuses(measured: Measured) -> dict[str, int]:
    """Answers by status; `lost` are those that never came."""
    return {("lost" if status == 0 else str(status)): count for status, count in sorted(measured.statuses().items())}


def of_stride(url: str, name: str) -> str | None:
    """The version of a model that a Stride service serves."""
    body = get(f"{url}/v1/models")
    for model in json.loads(body)["models"] if body else ():
        if model["name"] == name and model["serving"]:
            return str(model["serving"]["version"])
    return None
