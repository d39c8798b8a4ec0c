"""How a worker's application begins and ends: what it is made of, and the drain after SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from services.inference import logs, memory, otlp, provider, settings
from services.inference.connection import Connection
from services.inference.keys import Keys
from services.inference.metrics import Metrics
from services.inference.models import Models
from services.inference.predict import Predictor
from services.inference.prediction_log import PredictionLog
from services.inference.refusals import Refusals
from services.inference.registry import shown
from services.inference.tracing import Tracer
from services.inference.watcher import Watcher

if TYPE_CHECKING:
    from services.inference.app import Application

_LAME_DUCK_S: Final = 0.3
"""After SIGTERM, how long requests are still taken, each connection being closed with its answer: a request that is
already on its way to a connection that is being closed would be lost."""
_TURN_S: Final = 0.0001
"""A turn at the interpreter's lock. The event loop asks for it after every wait, several times a prediction, and with
Python's own 5 ms each look at the registry would make the tail of the latency."""
_RESTORE_S: Final = 30.0
"""How long a start waits for the stored models; from then on it says by itself that it is not ready."""


@contextlib.asynccontextmanager
async def lifespan(app: Application) -> AsyncIterator[None]:
    logs.configure()
    memory.give_back_large_blocks()
    sys.setswitchinterval(_TURN_S)
    read = settings.read()
    Connection.head_s = read.body_s
    Connection.keep_s = read.keep_alive_s
    app.metrics = Metrics()
    Connection.refusals = Refusals(app.metrics)
    app.keys = Keys(read.api_keys_file, metrics=read.metrics_keys_file) if read.api_keys_file else None
    app.tracer = _tracer(app.metrics)
    app.models = Models(default=read.model, metrics=app.metrics, drift_window=read.drift_window)
    threads = read.threads or provider.threads(read.workers)
    log = _prediction_log(read, app.metrics)
    watcher = Watcher(read, app.models, app.metrics, asyncio.get_running_loop())
    app.predictor = Predictor(read, app.models, app.metrics, decoders=threads, log=log, ask=watcher.look_again)
    # Where the graph's thread has a core of its own, crowds are answered by both, and a way that only single requests
    # could take would make the peak cheaper than the overload. And the fast path leaves no spans.
    alone = provider.threads(read.workers) == 1 and app.tracer is None
    Connection.fast_path = app.predictor.fast_path(app.keys) if alone else None
    watcher.start()
    publishing = asyncio.create_task(app.metrics.keep_published())
    _drain_at_sigterm(app, read)
    logs.info("started", pid=os.getpid(), threads=threads, registry=shown(read.tracking_uri), home=str(read.home))
    # The workers share one socket: one that takes connections before it has a model answers 503 beside a ready one.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(watcher.restored.wait(), _RESTORE_S)
    try:
        yield
    finally:
        watcher.stop()
        await app.models.drain()
        app.predictor.close()
        for writer in (log, app.tracer):
            if writer is not None:
                await asyncio.to_thread(writer.close)
        publishing.cancel()
        app.metrics.publish()
        logs.info("stopped", pid=os.getpid())


def _tracer(kept: Metrics) -> Tracer | None:
    if (collector := otlp.read()) is None:
        return None
    logs.info("traces_wanted", collector=collector.address, sampled=collector.ratio)
    return otlp.tracer(collector, dropped=kept.traces_dropped.inc)


def _prediction_log(read: settings.Settings, kept: Metrics) -> PredictionLog | None:
    if read.prediction_log is None:
        return None
    return PredictionLog(
        read.prediction_log,
        sample=read.prediction_log_sample,
        pixels=read.prediction_log_pixels,
        max_bytes=read.prediction_log_bytes,
        written=kept.log_written.inc,
        dropped=kept.log_dropped,
    )


def _drain_at_sigterm(app: Application, read: settings.Settings) -> None:
    """Put a short time before the server's own ending, in which every connection ends with an answer."""
    loop = asyncio.get_running_loop()
    servers_own = signal.getsignal(signal.SIGTERM)
    if not callable(servers_own):  # not run by a server (in a test), so there is nothing to put before
        return

    def drain(number: int, frame: Any) -> None:
        if app.draining:
            return
        app.draining = True
        # From then on every answer ends its connection. Not here, amid a refusal that has just looked.
        loop.call_soon_threadsafe(setattr, Connection, "refusals", None)
        loop.call_soon_threadsafe(setattr, Connection, "fast_path", None)
        logs.info("draining", grace_seconds=read.grace_s)
        loop.call_soon_threadsafe(app.predictor.bodies.cut, max(0.0, read.grace_s - read.deadline_s - _LAME_DUCK_S))
        loop.call_soon_threadsafe(loop.call_later, _LAME_DUCK_S, servers_own, number, frame)
        loop.call_soon_threadsafe(loop.call_later, read.grace_s, Connection.abort_all)

    signal.signal(signal.SIGTERM, drain)
