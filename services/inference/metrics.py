"""What Prometheus sees. Label sets are closed: nothing that a client sends becomes a label."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

from services.inference import exposition
from services.inference.batch import Ran
from services.inference.prediction_log import Reason
from services.inference.provider import CUDA
from services.inference.tallies import Direct, Family, Level, Observations, Tally

# From a tenth of a millisecond: one small network answers in half of one.
SECONDS: Final = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SHED: Final = ("queue_full", "would_be_late", "late", "bodies_full", "not_begun")
"""Why a request was answered 429: the places were taken; it would have missed its deadline, and did; no room for its
body; too many waited for the event loop."""


_PUBLISH_S: Final = 0.25
"""How old another worker's counts of predictions may be; a worker that is killed takes as many with it."""


class Metrics:
    """The service's collectors.

    With several workers prometheus_client keeps the values in files that BentoML's directory collects: whichever
    worker is asked for /metrics answers for all of them. What every prediction counts reaches the library by `publish`.
    """

    def __init__(self, registry: Any = None) -> None:
        # Imported here: the multiprocess mode is fixed at import, by a variable that BentoML sets before.
        import prometheus_client as prom

        exposition.begin(os.getpid())
        kept = registry or prom.REGISTRY
        model = ["model"]
        self.gpu = False
        """A model runs on one."""
        self._shown: dict[str, tuple[str, ...]] = {}

        def seconds(name: str, what: str) -> Family[Observations]:
            metric = prom.Histogram(f"stride_{name}_seconds", what, model, buckets=SECONDS, registry=kept)
            return Family(metric, Observations)

        def counter(name: str, what: str, labels: list[str]) -> Direct:
            return Direct(prom.Counter(f"stride_{name}", what, labels, registry=kept))

        def tally(name: str, what: str, labels: list[str]) -> Family[Tally]:
            return Family(prom.Counter(f"stride_{name}", what, labels, registry=kept), Tally)

        def gauge(name: str, what: str, labels: list[str], workers: str) -> Direct:
            """Of several workers, `livemax` shows the largest value, `livesum` their sum."""
            mode: Any = workers
            return Direct(prom.Gauge(f"stride_{name}", what, labels, multiprocess_mode=mode, registry=kept))

        self.queue_s = seconds("queue", "A request's wait between its decoding and its batch")
        self.decode_s = seconds("decode", "Decoding of a request's images")
        self.infer_s = seconds("infer", "One run of the graph over a batch")
        self.total_s = seconds("request", "A prediction, from the request's first byte to its answer")
        self.batch_rows = Family(
            prom.Histogram("stride_batch_rows", "Images of one run of the graph", model, buckets=ROWS, registry=kept),
            Observations,
        )
        self.batches = tally(
            "batches", "Runs of the graph: the thread was idle, took what had gathered, or the batch was full",
            ["model", "reason"],
        )  # fmt: skip
        self.predictions = tally("predictions", "Images answered", model)
        self.errors = counter("errors", "Requests answered with an error", ["code"])
        self.shed = counter("shed", "Requests answered 429, by what was short", ["reason"])
        for reason in SHED:  # from the first look on, so that the first one is seen as an increase
            self.shed.labels(reason)
        self.requests = tally("http_requests", "Requests, by route and class", ["route", "status"])
        self.in_flight = Level(
            prom.Gauge("stride_requests_in_flight", "Predictions begun and not answered",
                       multiprocess_mode="livesum", registry=kept)
        )  # fmt: skip
        served = ["model", "version", "provider", "precision"]
        self.info = gauge("model_info", "1 for the version that is served", served, "livemax")
        self.swaps = counter("model_swaps", "Versions that were brought into service", model)
        self.quarantines = counter(
            "model_quarantines", "Versions that were refused, by what failed", ["model", "step"]
        )  # fmt: skip
        self.in_quarantine = gauge(
            "model_quarantined", "1 while the version that is wanted of a model is refused", model, "livemax"
        )
        self.answers = tally("answers", "Requests answered, by champion or challenger", ["model", "variant"])
        self.stand_ins = counter(
            "canary_stand_ins", "Requests answered by the champion since the challenger failed", model
        )
        pair = ["model", "challenger"]
        self.shadow_images = counter("shadow_images", "Images answered by the challenger too, to be compared", pair)
        self.shadow_disagreements = counter(
            "shadow_disagreements", "Compared images to which it gives another most probable class", pair
        )
        self.shadow_difference = counter(
            "shadow_difference", "Sum over the compared images of the mean absolute difference of probabilities", pair
        )
        self.shadow_dropped = counter(
            "shadow_dropped", "Requests not compared: the challenger busy, the champion loaded, or failed",
            ["model", "reason"],
        )  # fmt: skip
        # The watcher's thread observes these.
        self.fetch_s = Direct(
            prom.Histogram("stride_model_fetch_seconds", "Fetching and verifying a bundle", model, registry=kept)
        )
        self.load_s = Direct(
            prom.Histogram("stride_model_load_seconds", "Loading, warming and proving a bundle", model, registry=kept)
        )
        self.drift = gauge(
            "drift_psi", "Population stability index of the last answers against the test set's", ["model", "of"],
            "livemax",
        )  # fmt: skip
        self.drift_images = gauge("drift_images", "Images that drift is told of", model, "livesum")
        self.log_written = prom.Counter(
            "stride_prediction_log_lines", "Lines written to the prediction log", registry=kept
        )
        self._log_dropped = counter("prediction_log_dropped", "Lines that were lost, by what was full", ["reason"])
        self.traces_dropped = prom.Counter(
            "stride_traces_dropped", "Requests whose spans the collector did not get", registry=kept
        )

        self._kept = [one for one in vars(self).values() if isinstance(one, Family | Level)]

    def publish(self) -> None:
        """Hand over what has been counted since the last time. Belongs to the event loop, as all that counts."""
        for one in self._kept:
            one.publish()

    async def keep_published(self) -> None:
        """Never ends."""
        while True:
            await asyncio.sleep(_PUBLISH_S)
            self.publish()

    def serves(self, name: str, version: str, provider: str, precision: str) -> None:
        self.leaves(name)
        self._shown[name] = (name, version, provider, precision)
        self.info.labels(*self._shown[name]).set(1)
        self.gpu = self.gpu or provider == CUDA
        self.swaps.labels(name).inc()
        self.in_quarantine.labels(name).set(0)

    def leaves(self, name: str) -> None:
        """The version is served no more."""
        if (shown := self._shown.pop(name, None)) is not None:
            self.info.labels(*shown).set(0)  # and is not exposed any more

    def drifted(self, name: str, classes: float | None, confidence: float | None, images: int) -> None:
        """The stability of a model's last answers; None where nothing is to be told of it."""
        self.drift.labels(name, "classes").set(-1 if classes is None else classes)
        self.drift.labels(name, "confidence").set(-1 if confidence is None else confidence)
        self.drift_images.labels(name).set(images)

    def refused(self, route: str, status: int, code: str, shed: str | None = None, times: int = 1) -> None:
        """Requests were answered with an error; `shed` says what was short."""
        self.errors.labels(code).inc(times)
        self.requests.labels(route, f"{status // 100}xx").inc(times)
        if shed is not None:
            self.shed.labels(shed).inc(times)

    def log_dropped(self, reason: Reason, lines: int) -> None:
        self._log_dropped.labels(reason).inc(lines)

    def quarantined(self, name: str, step: str) -> None:
        self.quarantines.labels(name, step).inc()
        self.in_quarantine.labels(name).set(1)

    def pardoned(self, name: str) -> None:
        self.in_quarantine.labels(name).set(0)

    def compared(self, name: str, challenger: str, images: int, differing: int, difference: float) -> None:
        self.shadow_images.labels(name, challenger).inc(images)
        self.shadow_disagreements.labels(name, challenger).inc(differing)
        self.shadow_difference.labels(name, challenger).inc(difference)

    def loaded(self, name: str, fetch_s: float, load_s: float) -> None:
        self.fetch_s.labels(name).observe(fetch_s)
        self.load_s.labels(name).observe(load_s)

    def ran(self, name: str, ran: Ran) -> None:
        self.infer_s.labels(name).observe(ran.infer_s)
        self.batch_rows.labels(name).observe(ran.rows)
        self.batches.labels(name, ran.reason).inc()
        queue_s = self.queue_s.labels(name)
        for waited in ran.queue_s:
            queue_s.observe(waited)
