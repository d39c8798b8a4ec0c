"""What Prometheus sees. Label sets are closed: nothing that a client sends becomes a label."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from services.inference.batcher import Ran

# From a tenth of a millisecond: one small network answers in half of one.
SECONDS: Final = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The service's collectors.

    With several workers prometheus_client keeps the values in files that BentoML's directory collects: whichever
    worker is asked for /metrics answers for all of them.
    """

    def __init__(self, registry: Any = None) -> None:
        # Imported here: the multiprocess mode is fixed at import, by a variable that BentoML sets before.
        import prometheus_client as prom

        kept = registry or prom.REGISTRY
        model = ["model"]

        def seconds(name: str, what: str) -> Any:
            return prom.Histogram(f"stride_{name}_seconds", what, model, buckets=SECONDS, registry=kept)

        self.queue_s = seconds("queue", "A request's wait between its decoding and its batch")
        self.decode_s = seconds("decode", "Decoding of a request's images")
        self.infer_s = seconds("infer", "One run of the graph over a batch")
        self.total_s = seconds("request", "A prediction, from the request's first byte to its answer")
        self.batch_rows = prom.Histogram(
            "stride_batch_rows", "Images of one run of the graph", model, buckets=ROWS, registry=kept
        )
        self.predictions = prom.Counter("stride_predictions", "Images answered", model, registry=kept)
        self.errors = prom.Counter("stride_errors", "Requests answered with an error", ["code"], registry=kept)
        self.requests = prom.Counter(
            "stride_http_requests", "Requests, by route and class", ["route", "status"], registry=kept
        )
        self.in_flight = prom.Gauge("stride_requests_in_flight", "Predictions begun and not answered",
                                    multiprocess_mode="livesum", registry=kept)  # fmt: skip
        info = ["model", "version", "provider"]
        self.info = prom.Gauge("stride_model_info", "1 for the version that is served, 0 for former ones", info,
                               multiprocess_mode="livemax", registry=kept)  # fmt: skip
        self.swaps = prom.Counter("stride_model_swaps", "Versions that were brought into service", model, registry=kept)
        self.quarantines = prom.Counter("stride_model_quarantines", "Versions that were refused", model, registry=kept)
        self.fetch_s = prom.Histogram(
            "stride_model_fetch_seconds", "Fetching and verifying a bundle", model, registry=kept
        )
        self.load_s = prom.Histogram(
            "stride_model_load_seconds", "Loading, warming and proving a bundle", model, registry=kept
        )

    def serves(self, name: str, version: str, provider: str, before: str | None) -> None:
        if before is not None and before != version:
            self.info.labels(name, before, provider).set(0)
        self.info.labels(name, version, provider).set(1)
        self.swaps.labels(name).inc()

    def quarantined(self, name: str) -> None:
        self.quarantines.labels(name).inc()

    def loaded(self, name: str, fetch_s: float, load_s: float) -> None:
        self.fetch_s.labels(name).observe(fetch_s)
        self.load_s.labels(name).observe(load_s)

    def ran(self, name: str, ran: Ran) -> None:
        self.infer_s.labels(name).observe(ran.infer_s)
        self.batch_rows.labels(name).observe(ran.rows)
        queue_s = self.queue_s.labels(name)
        for waited in ran.queue_s:
            queue_s.observe(waited)


def expose() -> tuple[bytes, str]:
    """All of this service's metrics in Prometheus' text format, and its media type. Reads files: not for the loop."""
    import prometheus_client as prom
    from prometheus_client import multiprocess

    registry = prom.REGISTRY
    if (shared := os.environ.get("PROMETHEUS_MULTIPROC_DIR")) is not None:
        # A killed worker cannot take its gauges away, and would serve its version for ever. Its counters must stay.
        for pid in {int(path.stem.rpartition("_")[2]) for path in Path(shared).glob("gauge_live*_*.db")}:
            if not _lives(pid):
                multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
        registry = prom.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return prom.generate_latest(registry), prom.CONTENT_TYPE_LATEST


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's process has the number by now; no worker of ours does
        return False
    return True
