"""services.inference.metrics: what several workers count together, and what a dead one leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WORKER = """
import os
from services.inference.metrics import Metrics
metrics = Metrics()
metrics.serves("shapes", "1", "CPUExecutionProvider", None)
metrics.in_flight.inc()
os.kill(os.getpid(), 9)
"""
ASKED = """
from services.inference.metrics import Metrics, expose
Metrics().serves("shapes", "2", "CPUExecutionProvider", None)
print(expose()[0].decode())
"""


def test_a_killed_worker_serves_no_version_and_holds_no_request_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    subprocess.run([sys.executable, "-c", WORKER], check=False)
    assert list(tmp_path.glob("gauge_live*"))
    text = subprocess.run([sys.executable, "-c", ASKED], check=True, capture_output=True, text=True).stdout
    assert 'stride_model_info{model="shapes",provider="CPUExecutionProvider",version="2"} 1.0' in text
    assert 'version="1"' not in text
    assert "stride_requests_in_flight 0.0" in text
    assert 'stride_model_swaps_total{model="shapes"} 2.0' in text  # counters stay, or they would run backwards
