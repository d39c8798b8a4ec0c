"""RESULTS.md from what was measured: a pure function, so that the same results always read the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from benchmarks.serving import plan, verdict
from benchmarks.serving.summary import middle, spread
from benchmarks.serving.verdict import Bar, bars

_GPU: Final = (
    "provider CUDA proved by node placement",
    "highest rate with p99 <= 25 ms, Fashion net, against bare IO-bound onnxruntime",
    "highest rate with p99 <= 25 ms, ResNet-18 at 224, against bare IO-bound onnxruntime",
)
_BUSY: Final = 0.1
_LATENCIES: Final = ("p50", "p90", "p99", "p99.9")


def render(results: Mapping[str, Any]) -> str:
    """The whole report, as Markdown."""
    found = bars(results)
    parts = [
        "# The inference service beside other servers",
        *_head(results),
        "## The bars",
        _table(("bar", "wanted", "found", "verdict"), [_bar(bar) for bar in found]),
        _table(("on a GPU", "verdict"), [(what, "not yet measured") for what in _GPU]),
        "## Where we lose",
        *_losses(results, found),
        "## Closed loop: each connection asks again as soon as it is answered",
        *_closed(results),
        "## Open loop: Poisson arrivals, bursts, twice the peak",
        *_open(results),
        "## 64 binary tensors a request",
        *_tensors(results),
        "## Swaps",
        *_swaps(results),
        "## How each was set up",
        *_setups(results),
        "## How it was measured",
        *_method(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(results: Mapping[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    if not results["complete"]:
        yield "**This run was not finished: what is missing was not measured.**"
    if max(results["busy"], default=0.0) > _BUSY:
        yield (
            f"**Other programs used up to {max(results['busy']):.0%} of the processors between the turns: these times "
            "are not those of a quiet machine, and bars may be missed for that alone.**"
        )
    for note in results["notes"]:
        yield f"**{note}**"
    yield (
        f"`{results['command']}` on {results['date']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_gb']:.0f} GB, Linux {machine['kernel']}, Python {machine['python']}."
    )
    model = results.get("model")
    if model:
        yield (
            f"The network of the recipe `{model['recipe']}` ({model['parameters']:,} parameters) on {model['data']}, "
            f"fitted for one epoch, since only its cost matters here (test accuracy {model['test_accuracy']:.3f}). "
            f"Tuned graph: {model['tuning']}."
        )
    yield (
        f"Figures are medians over the turns ({results['repeats']}), the smallest and the largest in brackets. "
        "Latencies are in milliseconds; a percentile that fewer than two answers lie beyond is not told (–)."
    )


def _bar(bar: Bar) -> tuple[str, ...]:
    shown = f"**{bar.verdict}**" if bar.held is False else bar.verdict
    return bar.what, bar.wanted, bar.found, shown


def _losses(results: Mapping[str, Any], found: Sequence[Bar]) -> Iterator[str]:
    """Every missed bar, and every figure in which a peer that serves the same graph is better than Stride."""
    lines = [f"- {bar.what}: {bar.found} (wanted {bar.wanted})" for bar in found if bar.held is False]
    servers = results["servers"]
    ours = servers.get("stride", {})
    for what, keys, unit, more_is_better in _compared():
        own = verdict.median_of(ours, *keys)
        if own is None:
            continue
        better, scale = [], 1e6 if unit == " MB" else 1.0
        for name, server in servers.items():
            other = verdict.median_of(server, *keys)
            if name not in verdict.NAMES and other is not None and (other > own if more_is_better else other < own):
                better.append(f"{server['title']} {_number(other / scale)}")
        if better:
            lines.append(f"- {what}: {', '.join(better)}{unit}; Stride {_number(own / scale)}{unit}")
    yield "\n".join(lines) if lines else "Nowhere, in what was measured here."


def _compared() -> Iterator[tuple[str, tuple[str, ...], str, bool]]:
    """(what, where it stands in a turn, unit, whether more is better)."""
    for count in map(str, plan.CONNECTIONS):
        at = f"at {count} connection{'s' * (count != '1')}"
        yield f"throughput {at}", ("closed", count, "rate"), "/s", True
        yield f"CPU a prediction {at}", ("closed", count, "cpu_ms"), " ms", False
        yield from ((f"{name} {at}", ("closed", count, name), " ms", False) for name in ("p50", "p99"))
    # Each at 70 % of its own peak: slower servers are asked less.
    yield "p99 at 70 % of the own peak", ("poisson", "p99"), " ms", False
    yield "p99 of bursts", ("burst", "p99"), " ms", False
    yield "goodput at twice the own peak, of the peak", ("overload", "goodput_share"), "", True
    yield "resident memory", ("memory",), " MB", False
    yield "time from start to ready", ("start_s",), " s", False


def _closed(results: Mapping[str, Any]) -> Iterator[str]:
    counts = [str(count) for count in plan.CONNECTIONS]
    rows = []
    for title, server in _measured(results):
        rates = [_cell(server, "closed", count, "rate") for count in counts]
        costs = [_cell(server, "closed", count, "cpu_ms") for count in counts]
        rows.append((title, *rates, *costs))
    floor = results.get("floor", {})
    for server in floor.values():
        rate = _brackets(1 / turn["png_wall_s"] for turn in server["turns"])
        cost = _brackets(1000 * turn["png_cpu_s"] for turn in server["turns"])
        rows.append((server["title"], rate, "", "", cost, "", ""))
    header = ("server", *(f"{count}: /s" for count in counts), *(f"{count}: CPU ms" for count in counts))
    yield "Predictions a second and CPU milliseconds a prediction (of every process of the server), by connections."
    yield _table(header, rows)
    rows = [
        (title, count, *(_cell(server, "closed", count, name) for name in _LATENCIES))
        for title, server in _measured(results)
        for count in counts
    ]
    yield _table(("server", "connections", *_LATENCIES), rows)


def _open(results: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"Arrivals at {plan.LOAD:.0%} of each server's own peak, every latency from when the request was due to be "
        f"sent; bursts of {plan.BURST} requests at once, every {plan.BURST_EVERY_S:g} s."
    )
    rows = [
        (
            title,
            _cell(server, "poisson", "rate"),
            *(_cell(server, "poisson", name) for name in _LATENCIES),
            _cell(server, "burst", "p50"),
            _cell(server, "burst", "p99"),
        )
        for title, server in _measured(results)
    ]
    yield _table(("server", "asked /s", *_LATENCIES, "burst p50", "burst p99"), rows)
    yield (
        f"Twice the own peak: goodput is what was answered within {plan.IN_TIME_S:g} s of when it was due, as a share "
        "of the peak; refused is 429 or 503."
    )
    rows = [
        (
            title,
            _cell(server, "overload", "rate"),
            _cell(server, "overload", "goodput_share"),
            _cell(server, "overload", "p50"),
            _cell(server, "overload", "p99"),
            _cell(server, "overload", "refused_share"),
            _cell(server, "overload", "refusals", "p50"),
            _cell(server, "overload", "refusals", "p99"),
        )
        for title, server in _measured(results)
    ]
    header = ("server", "asked /s", "goodput", "answered p50", "p99", "refused", "refusal p50", "p99")
    yield _table(header, rows)
    rows = [
        (
            title,
            _megabytes(server, "memory"),
            _megabytes(server, "memory_after"),
            _cell(server, "start_s"),
        )
        for title, server in _measured(results)
    ]
    yield "Resident memory of every process, what they share counted once."
    yield _table(("server", "MB after the closed loops", "MB after the overload", "start, s"), rows)


def _tensors(results: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (verdict.NAMES[name], _brackets(each["served_ms"]), _brackets(each["bare_ms"]), _brackets(each["ratios"]))
        for name, each in results.get("tensors", {}).items()
        if "ratio" in each
    ]
    if not rows:
        yield "Not measured."
        return
    yield (
        "`POST /v2/models/…/infer` with the binary tensor extension, one connection; bare onnxruntime runs the same "
        "batches with as many threads before and behind each measurement. CPU milliseconds an image."
    )
    yield _table(("graph", "Stride", "bare onnxruntime", "ratio"), rows)


def _swaps(results: Mapping[str, Any]) -> Iterator[str]:
    found = results.get("swaps") or {}
    if "failed" not in found:
        yield found.get("problem") or "Not measured."
        return
    yield (
        f"{found['swaps']} swaps seen of {found['wanted']} at {found['rate']:,.0f} requests a second, each to a "
        f"version that has to be fetched, verified, loaded and proved ({1000 * found['work_s']:.0f} ms on average): "
        f"{found['answers']:,} requests, {found['failed']} failed, {found['mixed']} answered by two versions, "
        f"{found['resent']} sent again on a new connection."
    )
    if found.get("problem"):
        yield f"The last one did not end: {found['problem']}."
    rows = [
        (when, f"{found[when]['answers']:,}", *(_plain(found[when][name]) for name in (*_LATENCIES, "max")))
        for when in ("during", "outside")
    ]
    yield _table(("of a swap", "answers", *_LATENCIES, "slowest"), rows)


def _setups(results: Mapping[str, Any]) -> Iterator[str]:
    lines = []
    for server in results["servers"].values():
        versions = ", ".join(f"{name} {version}" for name, version in server.get("versions", {}).items())
        lines.append(f"- **{server['title']}** ([`{server['source']}`](../../{server['source']})): {server['setup']}")
        lines[-1] += f". {versions}." if versions else "."
        if (difference := server.get("difference")) is not None:
            lines[-1] += f" Equal to bare onnxruntime within {difference:.1e}, {server['proved']} images."
        if problem := server.get("problem"):
            reason = problem.splitlines()[0].rstrip(".")
            lines[-1] += f" **Not measured to the end: {reason}.**" if server["turns"] else f" **Left out: {reason}.**"
    yield "\n".join(lines)


def _method(results: Mapping[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    late = middle(verdict.median_of(server, "poisson", "client_late_p99_ms") for server in results["servers"].values())
    shares = [
        each["client"]
        for server in results["servers"].values()
        for turn in server["turns"]
        for each in (*turn["closed"].values(), turn["poisson"], turn["overload"])
    ]
    busiest = f"{max(shares):.0%}" if shares else "–"
    lines = [
        f"One server at a time, started anew for each turn, held to core {machine['server_core']} with one worker; "
        f"the client, and MLflow beside Stride, to core {machine['client_core']}. With two cores that is one worker a "
        "core. The order changes from turn to turn. onnxruntime has one thread everywhere and does not spin.",
        f"The same ONNX file (but for the tuned graph) and the same {results.get('images', 0)} PNGs of 28 x 28, one "
        "after the other. A server is measured only once its probabilities of all of them equal bare onnxruntime's "
        "within 1e-5, asked at once.",
        "The client is one thread on epoll over kept connections with requests made beforehand. In the closed loops it "
        "looks for answers without pause, so that its own waking is in nobody's answer; what finds nothing is not "
        f"counted as work. At its busiest it used {busiest} of its core, and in the open loops 99 of 100 requests left "
        f"within {_plain(late)} ms of their time (the median over the servers). Processor time is every "
        "process' own clock; of an ended child it is in hundredths of a second.",
        "Bare onnxruntime is the floor: PNG, Pillow, one run, in a loop, no server.",
    ]
    yield "\n".join(f"- {line}" for line in lines)


def _measured(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((server["title"], server) for server in results["servers"].values() if server["turns"])


def _cell(server: Mapping[str, Any], *keys: str) -> str:
    return _brackets(_values(server, *keys))


def _values(server: Mapping[str, Any], *keys: str) -> list[float | None]:
    return [verdict.median_of({"turns": [turn]}, *keys) for turn in server["turns"]]


def _megabytes(server: Mapping[str, Any], key: str) -> str:
    return _brackets([None if value is None else value / 1e6 for value in _values(server, key)])


def _brackets(values: Iterable[float | None]) -> str:
    known = list(values)
    median, ends = middle(known), spread(known)
    if median is None or ends is None:
        return "–"
    if len(known) == 1:
        return _number(median)
    return f"{_number(median)} ({_number(ends[0])}–{_number(ends[1])})"


def _plain(value: float | None) -> str:
    return "–" if value is None else _number(value)


def _number(value: float) -> str:
    """Three digits that say something."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) if len(lines) > 2 else ""
