"""What the machine does while a run runs: CPU, memory, disk, network and GPUs, under MLflow's own `system/` keys.

MLflow's monitors do the reading. Its own thread is not used: it asks the store for the whole run at every sample and
samples every 10 s, which leaves short runs without any.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mlflow.entities import Metric

_log = logging.getLogger(__name__)

_BATCH: Final = 5
"""Samples that are sent at once."""
_DENSE: Final = 60
"""Samples after which the interval is ten times as long: a fit of hours needs no second-by-second record."""


class SystemMetrics:
    """Samples in a thread of its own between `start` and `stop`; neither raises, a run never fails for want of it.

    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL (seconds, 1 by default) and MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=false
    are heeded.
    """

    def __init__(self, send: Callable[[list[Metric]], None], *, run_seconds: float = 0.0) -> None:
        """Of a run that is `run_seconds` old: a resumed one, whose steps then go on behind those it has."""
        self._send, self._run_seconds = send, run_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true").lower() not in ("false", "0"):
            self._thread.start()

    def stop(self) -> None:
        """Take a last sample, send what is left and end the thread."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)  # the client's own time limit; the thread is a daemon, it can be left

    def _run(self) -> None:
        try:
            self._sample()
        except Exception:  # noqa: BLE001 - drivers and containers fail in their own ways, and the fit is worth more
            _log.warning("system metrics stopped; the run goes on without them", exc_info=True)

    def _sample(self) -> None:
        interval = float(os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL") or 1.0)
        monitors = _monitors()
        _read(monitors)  # CPU utilisation is a difference: the first reading of a process means nothing
        waiting: list[Metric] = []
        # No run has taken more samples than intervals, and a last one, have passed.
        first = math.ceil(self._run_seconds / interval) + 1 if self._run_seconds else 0
        taken, stopped = 0, False
        while not stopped:
            stopped = self._stopped.wait(interval if taken < _DENSE else 10 * interval)
            waiting += _metrics(_read(monitors), first + taken)
            taken += 1
            if stopped or taken % _BATCH == 0:
                self._send(waiting)
                waiting = []


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = []
    for monitor in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        try:
            monitors.append(monitor())
        except (ImportError, RuntimeError, AttributeError) as error:  # no GPU, or a container without a network
            _log.debug("%s is left out: %s", monitor.__name__, error)
    return monitors


def _read(monitors: list[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        values |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return values


def _metrics(values: dict[str, float], step: int) -> list[Metric]:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(f"system/{name}", float(value), now, step) for name, value in values.items()]
