"""A verified bundle made into a model that answers, beside the serving and without holding it up."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from contracts.bundle import Bundle
from services.inference import provider as providers
from services.inference.batch import Ran
from services.inference.batcher import Batcher
from services.inference.engine import Engine
from services.inference.metrics import Metrics
from services.inference.model import Model, slot
from services.inference.provider import Provider
from services.inference.settings import Settings
from services.inference.store import Served
from services.inference.variants import Variant

_AT_ONCE_S: Final = 0.0005
"""A run of the graph that may hold up the event loop where the thread has a core of its own: some five times what a
hop to it and back costs."""
_ALONE_S: Final = 0.03
"""And where it has none: there the thread would not work beside the loop but in turns with it, and the two would wait
for each other's turns at the interpreter's lock as well."""
_NICE: Final = 10
"""Of the thread that loads where it has no core of its own: a tenth of the share that serving has. With a third, p99
was three times as long during a swap. Not less, or other programs could keep it waiting for a core while it holds the
interpreter's lock."""


class Loader:
    """Belongs to the watcher's thread."""

    def __init__(
        self, settings: Settings, metrics: Metrics, provider: Provider, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._provider = provider
        self._loop = loop
        cores = providers.threads(settings.workers)
        self._threads = settings.threads or cores
        self.alone = provider.name == providers.CPU and cores == self._threads == 1
        """No thread of this process has a core of its own."""

    def load(self, bundle: Bundle) -> Engine:
        """Load, warm and prove it.

        Raises:
            BundleError, DeviceError: as Engine.
        """
        settings = self._settings
        engine = Engine(
            bundle,
            self._provider,
            threads=self._threads,
            max_batch=settings.max_batch,
            all_threads=settings.threads > 0,
        )
        settle_memory()
        return engine

    def model(self, served: Served, engine: Engine, variant: Variant) -> Model:
        """What answers with it; to be called on the event loop, whose priority its thread takes over."""
        kept = slot(served.name, variant)
        observe: Callable[[Ran], None] = partial(self._metrics.ran, kept)
        # On CUDA each thread that runs a graph has libraries to open and memory of its own.
        at_once_s = 0.0 if self._provider.name == providers.CUDA else _ALONE_S if self.alone else _AT_ONCE_S
        batcher = Batcher(
            engine.infer,
            loop=self._loop,
            max_batch=self._settings.max_batch,
            queue_rows=self._settings.queue_rows,
            on_batch=observe,
            name=f"infer-{kept}",
            at_once_s=at_once_s,
            alone=self.alone,
            row_s=engine.row_s if self.alone else 0.0,
        )
        return Model(served, engine, batcher, variant)


def step_back() -> None:
    """Let this thread, and those that it starts, have what the others leave. It cannot be undone."""
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)


def settle_memory() -> None:
    """What a load leaves behind lives long; frozen, no later collection walks it (it made the tail of the latency)."""
    gc.collect()
    gc.freeze()
