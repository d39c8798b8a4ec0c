"""The watcher: one thread that follows the registry and brings new champions to the models.

Everything slow happens here, beside the serving: asking, downloading, verifying, loading, warming, the golden images.
Only the finished model is handed to the event loop. A version that fails any step is put in quarantine with the
reason and not tried again before it changes; what is served stays.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from contracts.bundle import Bundle
from contracts.errors import BundleError, DeviceError, RegistryError, StrideError
from contracts.registry import BUNDLE_DIGEST, BUNDLE_URI
from services.inference import logs
from services.inference import provider as providers
from services.inference.batcher import Batcher, Ran
from services.inference.engine import Engine
from services.inference.metrics import Metrics
from services.inference.models import Model, Models, Quarantined
from services.inference.provider import Provider
from services.inference.registry import Champion, Registry
from services.inference.settings import Settings
from services.inference.store import Served, Store


@dataclass(slots=True)
class _Failed:
    champion: Champion
    retry_at: float | None
    """On time.monotonic's clock; None: not before the version, its tags or the alias change."""
    attempts: int


class Watcher:
    """Owns its thread; talks to `models` through `loop.call_soon_threadsafe` alone."""

    def __init__(self, settings: Settings, models: Models, metrics: Metrics, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._models = models
        self._metrics = metrics
        self._loop = loop
        self._store = Store(settings.home / "serving")
        self._registry = Registry(settings.tracking_uri)
        self._served: dict[str, Served] = {}
        self._failed: dict[str, _Failed] = {}
        self._away = False
        self._stop = threading.Event()
        self.restored = asyncio.Event()
        """What the store holds is served, or refused."""
        # A daemon: a download that hangs must not hold up the end of the process.
        self._thread = threading.Thread(target=self._work, name="registry-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _work(self) -> None:
        try:
            provider = providers.choose(self._settings.device, require_gpu=self._settings.require_gpu)
        except DeviceError as error:
            # The service stays up to say why: alive, never ready, every prediction answered 503 with the reason.
            logs.warning("device_refused", reason=error.message)
            self._tell(partial(setattr, self._models, "refusal", error))
            self._tell(self.restored.set)
            return
        logs.info("provider_chosen", provider=provider.name, reason=provider.reason)
        self._guarded(partial(self._start_from_store, provider))
        self._tell(self.restored.set)
        while not self._stop.is_set():
            self._guarded(partial(self._follow, provider))
            self._stop.wait(self._settings.poll_s)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - a disk that is full today must not end the watching for good
            logs.failure("watcher_failed", error)

    def _start_from_store(self, provider: Provider) -> None:
        names = self._settings.names
        for served in self._store.remembered():
            if names and served.name not in names:
                continue
            bundle = self._store.installed(served.name, served.digest)
            if bundle is None:
                continue
            try:
                self._serve(served, bundle, provider)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other models are to be served
                # Not a quarantine: the registry may hold a good version, or the same one whole.
                logs.warning("stored_version_refused", model=served.name, version=served.version, reason=str(error))

    def _follow(self, provider: Provider) -> None:
        """One look at the registry."""
        first = not self._served
        try:
            champions = self._registry.champions(self._settings.names)
        except RegistryError as error:
            if not self._away:
                logs.warning("registry_away", reason=error.message)
            self._away = True
            self._tell(partial(setattr, self._models, "registry_error", error.message))
            return
        if self._away:
            logs.info("registry_back", registry=self._registry.uri)
        self._away = False
        self._tell(partial(setattr, self._models, "registry_error", None))
        for champion in champions:
            self._consider(champion, provider)
        if first and self._served:
            _settle_memory()  # once more: the registry's client has been imported since

    def _consider(self, champion: Champion, provider: Provider) -> None:
        served = self._served.get(champion.name)
        if served is not None and (served.version, served.digest) == (champion.version, champion.digest):
            if self._failed.pop(champion.name, None):
                self._tell(partial(self._models.pardon, champion.name))
            if served.promoted_at != champion.promoted_at:
                self._tell(partial(self._models.promoted, champion.name, champion.promoted_at))
                self._remember(Served(champion.name, champion.version, champion.digest, champion.promoted_at))
            return
        failed = self._failed.get(champion.name)
        attempts = 0
        if failed is not None and failed.champion == champion:
            if failed.retry_at is None or time.monotonic() < failed.retry_at:
                return
            attempts = failed.attempts
        try:
            self._adopt(champion, provider)
        except Exception as error:  # noqa: BLE001 - one model's failure, foreseen or not, must not hold up the others
            # What is wrong with the bundle stays wrong; what is wrong with the way to it may pass.
            if not isinstance(error, StrideError | OSError):
                logs.failure("load_failed", error, model=champion.name, version=champion.version)
            passing = not isinstance(error, BundleError)
            retry_at = time.monotonic() + min(300.0, 5.0 * 2**attempts) if passing else None
            self._failed[champion.name] = _Failed(champion, retry_at, attempts + 1)
            bad = Quarantined(champion.name, champion.version, str(error), time.time())
            self._tell(partial(self._models.quarantine, bad))
        else:
            self._failed.pop(champion.name, None)

    def _adopt(self, champion: Champion, provider: Provider) -> None:
        for tag, value in ((BUNDLE_URI, champion.uri), (BUNDLE_DIGEST, champion.digest)):
            if not value:
                who = f"model {champion.name!r} version {champion.version}"
                raise BundleError(f"{who} has no tag {tag}; register it with `stride promote`.")
        started = time.perf_counter()
        bundle = self._store.install(champion.name, champion.digest, partial(self._registry.download, champion))
        fetched = time.perf_counter()
        served = Served(champion.name, champion.version, champion.digest, champion.promoted_at)
        self._serve(served, bundle, provider)
        self._remember(served)
        self._metrics.loaded(champion.name, fetched - started, time.perf_counter() - fetched)

    def _serve(self, served: Served, bundle: Bundle, provider: Provider) -> None:
        """Load, warm and prove the version, then hand it over."""
        settings = self._settings
        engine = Engine(
            bundle,
            provider,
            threads=settings.threads or providers.threads(settings.workers),
            max_batch=settings.max_batch,
        )
        observe: Callable[[Ran], None] = partial(self._metrics.ran, served.name)
        batcher = Batcher(
            engine.infer,
            loop=self._loop,
            max_batch=settings.max_batch,
            queue_rows=settings.queue_rows,
            on_batch=observe,
            name=f"infer-{served.name}",
        )
        _settle_memory()
        self._served[served.name] = served
        self._tell(partial(self._models.swap, Model(served, engine, batcher)))

    def _remember(self, served: Served) -> None:
        self._served[served.name] = served
        try:
            self._store.remember(served)
        except OSError as error:
            # It is served all the same; only a start without the registry would not know of it.
            logs.warning("state_not_written", model=served.name, version=served.version, reason=str(error))

    def _tell(self, call: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: the service has ended
            self._stop.set()


def _settle_memory() -> None:
    # What a load leaves behind lives long; frozen, no later collection walks it (it made the tail of the latency).
    gc.collect()
    gc.freeze()
