"""What Prometheus reads from /metrics. The labels are closed sets: nothing that a client sends becomes one."""

from __future__ import annotations

from typing import Final, get_args

import prometheus_client as prom

from services.training.jobs.job import ENDED, STATES, Kind
from services.training.jobs.store import Store

CONTENT_TYPE: Final = prom.CONTENT_TYPE_LATEST


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = prom.CollectorRegistry()
        self._jobs = prom.Gauge("stride_jobs", "Jobs by state", ["state"], registry=self._registry)
        self.ended = prom.Counter(
            "stride_jobs_ended", "Jobs that came to their end since the start", ["kind", "state"],
            registry=self._registry,
        )  # fmt: skip
        self.requests = prom.Counter(
            "stride_jobs_http_requests", "Requests, by route and class", ["route", "status"], registry=self._registry
        )
        self.ready = prom.Gauge("stride_jobs_ready", "1 while jobs can be begun", registry=self._registry)
        for kind in get_args(Kind):
            for state in ENDED:  # from the first look on, so that the first one is seen as an increase
                self.ended.labels(kind, state)

    def expose(self, store: Store, *, ready: bool) -> bytes:
        for state in STATES:
            self._jobs.labels(state).set(store.counts()[state])
        self.ready.set(ready)
        return prom.generate_latest(self._registry)
