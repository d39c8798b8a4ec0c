from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from services.training.system_metrics import SystemMetrics

if TYPE_CHECKING:
    from mlflow.entities import Metric


def test_samples_are_sent_while_it_runs_and_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.01")
    sent: list[Metric] = []
    twice = threading.Event()
    calls = 0

    def send(metrics: list[Metric]) -> None:
        nonlocal calls
        sent.extend(metrics)
        calls += 1
        if calls == 2:
            twice.set()

    system = SystemMetrics(send)
    system.start()
    assert twice.wait(30)
    system.stop()
    assert "system-metrics" not in {thread.name for thread in threading.enumerate()}
    steps = [metric.step for metric in sent if metric.key == "system/system_memory_usage_percentage"]
    assert steps == list(range(len(steps)))
    assert len(steps) >= 10


def test_a_store_that_fails_neither_raises_nor_keeps_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    def send(_: list[Metric]) -> None:
        raise RuntimeError("away")

    system = SystemMetrics(send)
    system.start()
    system.stop()
    assert "system metrics stopped" in caplog.text
    assert "system-metrics" not in {thread.name for thread in threading.enumerate()}


def test_it_can_be_turned_off_as_mlflows_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    sent: list[Metric] = []
    system = SystemMetrics(sent.extend)
    system.start()
    system.stop()
    assert sent == []
