"""services.inference.metrics and exposition: closed label sets, several workers' counts, and what a dead one leaves."""

from __future__ import annotations

import asyncio
import os
import random
import re
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from contracts.errors import Overloaded
from services.inference import errors, exposition
from services.inference.app import Application
from services.inference.batch import Ran
from services.inference.metrics import SECONDS, SHED, Metrics
from services.inference.models import Models

WORKER = """
import os
from services.inference.metrics import Metrics
from services.inference.batch import Ran
metrics = Metrics()
metrics.serves("shapes", "1", "CPUExecutionProvider", "fp32")
metrics.drifted("shapes", 0.5, 0.7, 900)
metrics.ran("shapes", Ran(4, "idle", 0.004, (0.001, 0.002)))
metrics.in_flight.inc()
metrics.publish()
os.kill(os.getpid(), 9)
"""
ASKED = """
from services.inference.exposition import expose
from services.inference.metrics import Metrics
metrics = Metrics()
metrics.serves("shapes", "2", "CPUExecutionProvider", "int8")
metrics.publish()
print(expose()[0].decode())
"""


def page(script: str = ASKED) -> dict[str, float]:
    """What another worker shows: series -> value."""
    text = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    found = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {series: float(value) for series, _, value in found}


def test_a_killed_worker_serves_no_version_and_holds_no_request_any_more_but_its_counts_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", WORKER], check=False)
    assert list(tmp_path.glob("gauge_live*"))
    found = page()
    info = 'stride_model_info{model="shapes",precision="int8",provider="CPUExecutionProvider",version="2"}'
    assert found[info] == 1
    assert not any('version="1"' in series or "drift_psi" in series for series in found)
    assert found["stride_requests_in_flight"] == 0
    assert found['stride_model_swaps_total{model="shapes"}'] == 2  # or they would run backwards
    assert found['stride_queue_seconds_count{model="shapes"}'] == 2


def test_the_files_of_workers_that_die_again_and_again_do_not_add_up_and_no_count_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for deaths in (2, 4):
        for _ in range(2):
            subprocess.run([sys.executable, "-c", WORKER], check=False)
        found = page()
        assert found['stride_batch_rows_sum{model="shapes"}'] == 4 * deaths
        assert found['stride_batches_total{model="shapes",reason="idle"}'] == deaths
        assert found['stride_infer_seconds_bucket{le="+Inf",model="shapes"}'] == deaths
        assert found['stride_infer_seconds_bucket{le="0.003",model="shapes"}'] == 0
    # The files of the dead: one a kind. Those of the pages' own processes are younger than the last look.
    assert {path.name for path in tmp_path.glob("*_0.db")} == {"counter_0.db", "histogram_0.db"}
    exposition.bury(tmp_path)
    assert {path.name for path in tmp_path.glob("*.db")} == {"counter_0.db", "histogram_0.db"}


def test_a_file_that_a_killed_worker_left_half_written_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", WORKER], check=False)
    (tmp_path / "counter_999999999.db").write_bytes(b"\xff\xff\x00\x00" + b"\xff" * 60)
    (tmp_path / "histogram_999999998.db").write_bytes(b"")
    assert page()['stride_model_swaps_total{model="shapes"}'] == 2
    assert not (tmp_path / "counter_999999999.db").exists()


def test_a_worker_does_not_take_up_the_gauges_of_an_earlier_process_of_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    again = """
import os
from services.inference import exposition
from services.inference.metrics import Metrics
from pathlib import Path
first = Metrics()
first.in_flight.inc()
first.publish()
executable = __import__("sys").executable
os.execv(executable, [executable, "-c", '''
from services.inference.exposition import expose
from services.inference.metrics import Metrics
Metrics()
print(expose()[0].decode())
'''])
"""
    assert page(again)["stride_requests_in_flight"] == 0


def series(registry: CollectorRegistry) -> set[str]:
    text = generate_latest(registry).decode()
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def test_ten_thousand_addresses_that_are_not_there_add_no_series() -> None:
    rng = random.Random(0)
    registry = CollectorRegistry()
    application = Application()
    application.metrics = Metrics(registry)
    application.models = Models(default=None, metrics=application.metrics)
    answered: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answered.append(message["status"])

    def address() -> str:
        word = "".join(rng.choices(string.ascii_letters + string.digits + "/%-_.~\u00e9", k=rng.randint(1, 40)))
        return rng.choice(("/", "/v1/", "/v1/models/", "/v2/models/", "/v2/", "/metrics/")) + word

    async def ask(count: int) -> None:
        for _ in range(count):
            method = rng.choice(("GET", "HEAD", "PUT", "BREW"))
            await application({"type": "http", "method": method, "path": address(), "headers": []}, None, send)

    asyncio.run(ask(300))
    before = series(registry)
    asyncio.run(ask(10_000))
    assert series(registry) == before
    assert len(answered) == 10_300
    assert set(answered) <= {404, 405, 503}


def test_the_buckets_begin_below_a_millisecond_and_rise() -> None:
    assert SECONDS[0] == 0.0001
    assert sum(bound < 0.001 for bound in SECONDS) >= 5
    assert list(SECONDS) == sorted(set(SECONDS))


def test_what_is_counted_together_is_what_would_have_been_counted_one_by_one() -> None:
    together, alone = CollectorRegistry(), CollectorRegistry()
    metrics, library = Metrics(together), Histogram("stride_queue_seconds", "?", buckets=SECONDS, registry=alone)
    rng = np.random.default_rng(0)
    for value in (*SECONDS, 0.0, 11.0, *rng.exponential(0.01, 1000).tolist()):
        metrics.queue_s.labels("m").observe(value)
        library.observe(value)
        if value > 0.02:
            metrics.publish()
    metrics.publish()
    for bound in (*map(str, SECONDS), "+Inf"):
        found = together.get_sample_value("stride_queue_seconds_bucket", {"model": "m", "le": bound})
        assert found == alone.get_sample_value("stride_queue_seconds_bucket", {"le": bound})
    total = together.get_sample_value("stride_queue_seconds_sum", {"model": "m"})
    assert total == pytest.approx(alone.get_sample_value("stride_queue_seconds_sum"))


def test_a_batch_is_counted_by_its_reason_its_rows_and_the_wait_of_each_request() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.ran("m", Ran(5, "gathered", 0.002, (0.0001, 0.0004)))
    metrics.ran("m", Ran(64, "full", 0.02, (0.01,)))

    metrics.publish()

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"stride_{name}", {"model": "m", **labels})

    assert (value("batches_total", reason="gathered"), value("batches_total", reason="full")) == (1, 1)
    assert (value("batch_rows_sum"), value("queue_seconds_count"), value("infer_seconds_count")) == (69, 3, 2)
    assert value("queue_seconds_bucket", le="0.0005") == 2


def test_a_former_version_is_not_shown_and_neither_is_a_drift_that_is_not_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    script = """
from services.inference.exposition import expose
from services.inference.metrics import Metrics
metrics = Metrics()
for version in "123":
    metrics.serves("m", version, "CPUExecutionProvider", "fp32")
metrics.drifted("m", None, 0.25, 700)
metrics.serves("m@challenger", "4", "CPUExecutionProvider", "fp32")
metrics.leaves("m@challenger")
metrics.publish()
print(expose()[0].decode())
"""
    found = page(script)
    assert [name for name in found if name.startswith("stride_model_info")] == [
        'stride_model_info{model="m",precision="fp32",provider="CPUExecutionProvider",version="3"}'
    ]
    assert {name for name in found if "drift_psi" in name} == {'stride_drift_psi{model="m",of="confidence"}'}
    assert found['stride_drift_images{model="m"}'] == 700
    assert found['stride_model_swaps_total{model="m"}'] == 3


def test_of_many_challengers_the_last_ones_and_the_served_one_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    script = """
from services.inference.exposition import expose
from services.inference.metrics import Metrics
metrics = Metrics()
for version in range(1, 101):
    metrics.compared("m", str(version), 1, 0, 0.5)
metrics.compared("other", "7", 1, 0, 0.5)
metrics.serves("m@challenger", "3", "CPUExecutionProvider", "fp32")
print(expose()[0].decode())
"""
    found = [series for series in page(script) if series.startswith("stride_shadow_images_total")]
    shown = {f'stride_shadow_images_total{{challenger="{version}",model="m"}}' for version in (3, *range(91, 101))}
    assert set(found) == shown | {'stride_shadow_images_total{challenger="7",model="other"}'}


def test_every_reason_to_shed_is_counted_from_the_start() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    for reason in SHED:
        assert registry.get_sample_value("stride_shed_total", {"reason": reason}) == 0
    sources = "".join(path.read_text() for path in Path(exposition.__file__).parent.rglob("*.py"))
    used = set(re.findall(r'reason="(\w+)"\)', sources)) | {Overloaded("x").reason}
    assert used - {"champion"} <= set(SHED)
    assert errors.BodiesFull("x", reason="bodies_full").code == "overloaded"


def test_gpu_memory_is_told_where_there_is_a_gpu_and_the_page_comes_without_one() -> None:
    text = exposition.expose(gpu=True)[0].decode()
    assert "# TYPE stride_gpu_memory_bytes gauge" in text
    assert "stride_gpu_memory_bytes" not in exposition.expose()[0].decode()


@pytest.mark.gpu
def test_a_gpus_memory_is_told() -> None:
    text = exposition.expose(gpu=True)[0].decode()
    found = dict(re.findall(r'stride_gpu_memory_bytes{gpu="0",kind="(\w+)"} (\S+)', text))
    assert 0 < float(found["used"]) < float(found["total"])


def test_a_dead_process_is_told_from_a_live_one() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not exposition._lives(ended.pid)
    assert exposition._lives(os.getpid())
