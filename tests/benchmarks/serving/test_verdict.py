"""The bars, and the report that tells them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.serving import report
from benchmarks.serving.verdict import Bar, bars, held, median_of


def turn(rate: float, *, cpu_ms: float = 0.5, p50: float = 10.0, p99: float | None = 15.0) -> dict[str, Any]:
    """One server's turn, each figure the same at every number of connections."""
    latencies = {"p50": p50, "p90": p50, "p99": p99, "p99.9": None, "max": 99.0}
    each = {"rate": rate, "cpu_ms": cpu_ms, "answers": 1000, "failed": 0, "client": 0.2, **latencies}
    overload = {**each, "goodput": 0.95 * rate, "goodput_share": 0.95, "refused_share": 0.4, "refusals": latencies}
    poisson = {**each, "client_late_p99_ms": 0.1}
    return {
        "start_s": 2.0,
        "closed": {count: dict(each) for count in ("1", "16", "64")},
        "memory": 100e6,
        "memory_after": 110e6,
        "peak": rate,
        "poisson": poisson,
        "burst": dict(each),
        "overload": overload,
    }


def server(title: str, *turns: dict[str, Any]) -> dict[str, Any]:
    about = {"title": title, "setup": "as it comes", "source": "a/b.py", "versions": {"x": "1.0"}}
    return {**about, "turns": list(turns), "tries": 0, "final": False, "difference": 1e-7, "proved": 200}


def good() -> dict[str, Any]:
    """Results in which every bar is held; each test breaks one."""
    latencies = {"p50": 2.0, "p90": 3.0, "p99": 4.0, "p99.9": None, "max": 9.0}
    tensors = {"served_ms": [0.21], "bare_ms": [0.2], "ratio": 1.05, "ratios": [1.05]}
    results: dict[str, Any] = {
        "command": "stride bench serve",
        "date": "2026-01-01",
        "complete": True,
        "notes": [],
        "busy": [0.01],
        "repeats": 3,
        "images": 200,
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "memory_gb": 25.0,
            "kernel": "6.1",
            "python": "3.11.2",
            "client_core": 0,
            "server_core": 1,
        },
        "model": {"recipe": "fashion", "parameters": 468586, "data": "fashion", "test_accuracy": 0.8, "tuning": "int8"},
        "servers": {
            "stride": server("Stride", *(turn(rate) for rate in (2000, 2100, 2200))),
            "stride-tuned": server("Stride, tuned graph", turn(3000, cpu_ms=0.3)),
            "starlette": server("Starlette", *(turn(rate, cpu_ms=0.6) for rate in (1700, 9000, 1600))),
        },
        "floor": {"fp32": {"title": "bare", "turns": [{"png_cpu_s": 2e-4, "png_wall_s": 2e-4}]}},
        "tensors": {"stride": dict(tensors), "stride-tuned": dict(tensors)},
        "swaps": {
            "wanted": 20,
            "swaps": 20,
            "answers": 9000,
            "failed": 0,
            "mixed": 0,
            "work_s": 0.2,
            "rate": 1400.0,
            "resent": 0,
            "problem": None,
            "statuses": {"200": 8999},
            "p99_ratio": 2.0,
            "server": "stride",
            "during": {"answers": 900, **latencies},
            "outside": {"answers": 8100, **latencies},
            "memory": {"swaps": 50, "early": 100e6, "late": 105e6},
        },
    }
    copied: dict[str, Any] = json.loads(json.dumps(results))
    return copied


def found(results: dict[str, Any], what: str) -> Bar:
    (bar,) = [bar for bar in bars(results) if what in bar.what]
    return bar


def change(results: dict[str, Any], path: str, value: object) -> None:
    *way, last = path.split("/")
    node: Any = results
    for key in way:
        node = node[int(key)] if isinstance(node, list) else node[key]
    node[last] = value


def test_every_bar_is_held_where_every_figure_is_good() -> None:
    assert [bar.line() for bar in bars(good()) if bar.held is not True] == []
    assert held(bars(good()))


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("servers/stride-tuned/turns/0/closed/1/cpu_ms", 0.37, "one PNG a request, int8"),
        ("servers/stride-tuned/turns/0/closed/64/rate", 0.0, ""),
        ("servers/stride-tuned/turns/0/closed/64/p99", 20.5, "p99 at 64 connections, int8"),
        ("servers/stride-tuned/turns/0/overload/goodput_share", 0.89, "goodput at twice the peak, int8"),
        ("servers/stride-tuned/turns/0/overload/refusals/p99", 101.0, "refusals at twice the peak, int8"),
        ("tensors/stride/ratio", 1.11, "64 binary tensors a request, fp32"),
        ("swaps/failed", 1, "swaps at 70 % load"),
        ("swaps/mixed", 1, "swaps at 70 % load"),
        ("swaps/swaps", 19, "swaps at 70 % load"),
        ("swaps/p99_ratio", 3.1, "p99 during a swap"),
        ("swaps/memory/late", 111e6, "memory after 50 swaps"),
    ],
)
def test_a_figure_beyond_its_bar_misses_that_bar_alone(path: str, value: object, what: str) -> None:
    results = good()
    change(results, path, value)
    missed = [bar for bar in bars(results) if bar.held is False]
    assert [what in bar.what for bar in missed] == ([True] if what else [])
    assert held(bars(results)) is not bool(what)


def test_what_bare_onnxruntime_takes_on_the_same_machine_stands_beside_processor_time() -> None:
    results = good()
    results["floor"]["fp32"]["turns"] = [{"png_cpu_s": value} for value in (7e-4, 7e-4, 1e-4)]
    assert found(results, "one PNG a request, int8").found.endswith("; bare onnxruntime in fp32 0.700")


def test_one_peer_that_is_faster_at_one_number_of_connections_misses_that_bar() -> None:
    results = good()
    for each in results["servers"]["starlette"]["turns"]:
        each["closed"]["16"]["rate"] = 2101
    bar = found(results, "throughput at 16 connections")
    assert bar.held is False
    assert "Starlette with 2,101" in bar.found
    assert found(results, "throughput at 1 connection").held
    assert "- throughput at 16 connections" in report.render(results)


def test_medians_decide_and_not_the_best_turn() -> None:
    results = good()
    assert median_of(results["servers"]["starlette"], "closed", "1", "rate") == 1700
    assert found(results, "throughput at 1 connection").held


def test_what_was_not_measured_is_neither_held_nor_missed_unless_it_failed() -> None:
    results = good()
    results["servers"]["stride-tuned"]["turns"] = []
    results["swaps"] = {}
    assert found(results, "one PNG a request, int8").held is None
    assert found(results, "swaps at 70 % load").held is None
    results["servers"]["stride-tuned"]["problem"] = "it ended"
    results["swaps"] = {"problem": "it ended", "wanted": 20}
    assert found(results, "one PNG a request, int8").held is False
    assert found(results, "swaps at 70 % load").held is False


def test_without_peers_nobody_is_ahead_of_nobody() -> None:
    results = good()
    del results["servers"]["starlette"]
    assert found(results, "throughput at 64 connections").held is None


def test_the_report_tells_bars_losses_spread_setups_and_what_is_missing() -> None:
    results = good()
    results["servers"]["ray"] = {**server("Ray Serve"), "problem": "no environment: ray cannot be installed.\nlong log"}
    results["servers"]["starlette"]["turns"][0]["memory"] = 30e6
    results["servers"]["starlette"]["turns"][1]["memory"] = 30e6
    text = report.render(results)
    assert "| CPU a prediction, one PNG a request, fp32 | <= 0.60 ms |" in text
    assert "2,100 (2,000–2,200)" in text
    assert "- resident memory: Starlette 30.0 MB; Stride 100 MB" in text
    assert "**Left out: no environment: ray cannot be installed.**" in text
    assert "long log" not in text
    assert text.count("not yet measured") == 3
    assert "not finished" not in text
    assert "a processor, 2 cores" in text
    assert "x 1.0" in text


def test_a_missed_bar_is_a_loss_and_is_marked() -> None:
    results = good()
    results["tensors"]["stride"]["ratio"] = 1.2
    text = report.render(results)
    assert "| **NOT held** |" in text
    assert "- CPU an image, 64 binary tensors a request, fp32" in text


def test_a_run_that_was_interrupted_at_once_is_told_as_that() -> None:
    results = good()
    for name in ("tensors", "swaps", "floor"):
        results[name] = {}
    for each in results["servers"].values():
        each["turns"] = []
    results["complete"] = False
    del results["model"]
    text = report.render(results)
    assert "**This run was not finished" in text
    assert "NOT held" not in text


def test_a_busy_machine_is_told_at_the_top() -> None:
    results = good()
    assert "Other programs" not in report.render(results)
    results["busy"] = [0.01, 0.4]
    assert "**Other programs used up to 40% of the processors" in report.render(results)
