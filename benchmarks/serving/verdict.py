"""The bars, and whether what was measured holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.serving.plan import CONNECTIONS
from benchmarks.serving.summary import middle

CPU_MS: Final = {"stride": 0.60, "stride-tuned": 0.36}
"""Set where bare onnxruntime took 0.35 ms for one PNG in fp32; what it takes here stands beside what was found."""
TAIL: Final = 2.0
TENSORS: Final = 1.1
GOODPUT: Final = 0.9
REFUSAL_MS: Final = 100.0
SWAP_TAIL: Final = 3.0
MEMORY: Final = 1.1
NAMES: Final = {"stride": "fp32", "stride-tuned": "int8"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One promise."""

    what: str
    wanted: str
    found: str
    """With its number; why it was not measured where it was not."""
    held: bool | None
    """None: not measured."""

    def line(self) -> str:
        return f"{self.verdict:<12} {self.what}: {self.found} (wanted {self.wanted})"

    @property
    def verdict(self) -> str:
        return {True: "held", False: "NOT held", None: "not measured"}[self.held]


def bars(results: Mapping[str, Any]) -> list[Bar]:
    """Every bar, in the order of the report."""
    servers = results["servers"]
    return [
        *_cpu(servers, results),
        *(_throughput(servers, count) for count in CONNECTIONS),
        *_tails(servers, results),
        *_tensors(results),
        *_overload(servers, results),
        *_swaps(results),
    ]


def held(found: list[Bar]) -> bool:
    """Whether nothing is missed; what was not measured is missed, unless the run was told to leave it out."""
    return all(bar.held is not False for bar in found)


def median_of(server: Mapping[str, Any], *keys: str) -> float | None:
    """The median over a server's turns of what stands under these keys; None where nothing was measured."""
    values = []
    for turn in server.get("turns", ()):
        value: Any = turn
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        values.append(value)
    return middle(values)


def _cpu(servers: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Bar]:
    bare_s = median_of(results.get("floor", {}).get("fp32", {}), "png_cpu_s")
    bare = "" if bare_s is None else f"; bare onnxruntime in fp32 {1000 * bare_s:.3f}"
    for name, most in CPU_MS.items():
        what, wanted = f"CPU a prediction, one PNG a request, {NAMES[name]}", f"<= {most:.2f} ms"
        known = {count: median_of(servers.get(name, {}), "closed", str(count), "cpu_ms") for count in CONNECTIONS}
        measured = {count: value for count, value in known.items() if value is not None}
        if not measured:
            yield _missing(what, wanted, name, results)
            continue
        worst = max(measured, key=lambda count: measured[count])
        shown = ", ".join(f"{value:.3f} at {count}" for count, value in measured.items())
        yield Bar(what=what, wanted=wanted, found=f"{shown} connections{bare}", held=measured[worst] <= most)


def _throughput(servers: Mapping[str, Any], count: int) -> Bar:
    what, wanted = f"throughput at {count} connection{'s' * (count > 1)}, fp32", "ahead of every peer"
    rates = {name: median_of(server, "closed", str(count), "rate") for name, server in servers.items()}
    ours = rates.pop("stride", None)
    peers = {name: rate for name, rate in rates.items() if rate is not None and name not in NAMES}
    if ours is None or not peers:
        reason = "Stride was not measured" if ours is None else "no peer was measured"
        return Bar(what=what, wanted=wanted, found=reason, held=None)
    best = max(peers, key=lambda name: peers[name])
    found = f"{ours:,.0f}/s, the best peer is {servers[best]['title']} with {peers[best]:,.0f}/s"
    return Bar(what=what, wanted=wanted, found=found, held=ours > peers[best])


def _tails(servers: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Bar]:
    for name, precision in NAMES.items():
        what, wanted = f"p99 at 64 connections, {precision}", f"<= {TAIL:g} x p50"
        p50, p99 = (median_of(servers.get(name, {}), "closed", "64", key) for key in ("p50", "p99"))
        if p50 is None or p99 is None:
            yield _missing(what, wanted, name, results)
            continue
        found = f"{p99:.1f} ms, p50 {p50:.1f} ms: {p99 / p50:.2f} x"
        yield Bar(what=what, wanted=wanted, found=found, held=p99 <= TAIL * p50)


def _tensors(results: Mapping[str, Any]) -> Iterator[Bar]:
    for name, precision in NAMES.items():
        what, wanted = f"CPU an image, 64 binary tensors a request, {precision}", f"<= {TENSORS:g} x bare onnxruntime"
        measured = results.get("tensors", {}).get(name)
        if not measured or "ratio" not in measured:
            yield _missing(what, wanted, name, results, measured)
            continue
        served, bare = middle(measured["served_ms"]), middle(measured["bare_ms"])
        found = f"{served:.4f} ms, bare {bare:.4f} ms: {measured['ratio']:.3f} x"
        yield Bar(what=what, wanted=wanted, found=found, held=measured["ratio"] <= TENSORS)


def _overload(servers: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Bar]:
    for name, precision in NAMES.items():
        server = servers.get(name, {})
        what, wanted = f"goodput at twice the peak, {precision}", f">= {GOODPUT:.0%} of the peak"
        share = median_of(server, "overload", "goodput_share")
        if share is None:
            yield _missing(what, wanted, name, results)
            continue
        goodput = median_of(server, "overload", "goodput") or 0.0
        yield Bar(what=what, wanted=wanted, found=f"{share:.0%}, {goodput:,.0f}/s", held=share >= GOODPUT)
        p99 = median_of(server, "overload", "refusals", "p99")
        what, wanted = f"p99 of refusals at twice the peak, {precision}", f"< {REFUSAL_MS:g} ms"
        if p99 is None:
            yield Bar(what=what, wanted=wanted, found="hardly any was refused", held=None)
        else:
            yield Bar(what=what, wanted=wanted, found=f"{p99:.1f} ms", held=p99 < REFUSAL_MS)


def _swaps(results: Mapping[str, Any]) -> Iterator[Bar]:
    found = results.get("swaps") or {}
    count = found.get("wanted") or 20
    failures, tail = f"{count} swaps at 70 % load", "p99 during a swap"
    if "failed" not in found:
        reason = found.get("problem") or "the run did not come to it"
        yield Bar(what=failures, wanted="0 failures", found=reason, held=False if found else None)
        yield Bar(what=tail, wanted=f"<= {SWAP_TAIL:g} x outside", found=reason, held=None)
        return
    shown = f"{found['failed']} failed and {found['mixed']} mixed of {found['answers']:,}, {found['swaps']} swaps seen"
    if found["failed"]:
        shown += f" ({', '.join(f'{count:,} {status}' for status, count in found['statuses'].items())})"
    good = not (found["failed"] or found["mixed"]) and found["swaps"] >= count
    yield Bar(what=failures, wanted="0 failures", found=shown, held=good)
    ratio = found["p99_ratio"]
    if ratio is None:
        yield Bar(what=tail, wanted=f"<= {SWAP_TAIL:g} x outside", found="too few answers to tell", held=None)
    else:
        shown = f"{found['during']['p99']:.1f} ms, outside {found['outside']['p99']:.1f} ms: {ratio:.2f} x"
        yield Bar(what=tail, wanted=f"<= {SWAP_TAIL:g} x outside", found=shown, held=ratio <= SWAP_TAIL)
    memory = found.get("memory")
    what, wanted = "resident memory after 50 swaps", "within 10 % of after the fifth"
    if memory is None:
        yield Bar(what=what, wanted=wanted, found="not in a quick run", held=None)
        return
    growth = memory["late"] / memory["early"]
    shown = f"{memory['late'] / 1e6:.0f} MB, after the fifth {memory['early'] / 1e6:.0f} MB: {growth:.3f} x"
    yield Bar(what=what, wanted=wanted, found=shown, held=growth <= MEMORY)


def _missing(
    what: str, wanted: str, name: str, results: Mapping[str, Any], measured: Mapping[str, Any] | None = None
) -> Bar:
    """Of a server that was not measured: a bar that is missed where it should have been."""
    server = results["servers"].get(name)
    problem = (measured or {}).get("problem") or (server or {}).get("problem")
    if problem is not None:
        return Bar(what=what, wanted=wanted, found=problem.splitlines()[0], held=False)
    return Bar(what=what, wanted=wanted, found="the run did not come to it", held=None)
