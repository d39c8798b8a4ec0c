"""The watcher: one thread that follows the registry and brings new champions and challengers to the models.

Everything slow happens here, beside the serving: verifying, loading, warming, the golden images. What is asked of the
registry and fetched from it, a process of its own does. Only the finished model is handed to the event loop. A version
that fails any step is put in quarantine with the reason, here and as a tag in the registry, and not tried again before
it changes or the tag is taken off; what is served stays.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from contracts.bundle import Bundle
from contracts.errors import BundleError, DeviceError, RegistryError, StrideError
from contracts.registry import BUNDLE_DIGEST, BUNDLE_URI, Quarantine, Rollout
from services.inference import logs
from services.inference import provider as providers
from services.inference.loader import Loader, step_back
from services.inference.metrics import Metrics
from services.inference.model import Quarantined, slot
from services.inference.models import Models
from services.inference.registry import Registered, Wanted, shown
from services.inference.registry_process import RegistryProcess
from services.inference.settings import Settings
from services.inference.store import Served, Store
from services.inference.variants import Variant

Step = Literal["tags", "fetch", "verify", "load"]
"""What a version can fail at; loading includes the warm-up and the golden images."""


@dataclass(slots=True)
class _Failed:
    wanted: Wanted
    retry_at: float | None
    """On time.monotonic's clock; None: not before the version, its tags or the alias change."""
    attempts: int
    marked: bool
    """The registry has the tag."""


class Watcher:
    """Owns its thread; talks to `models` through `loop.call_soon_threadsafe` alone."""

    def __init__(self, settings: Settings, models: Models, metrics: Metrics, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._models = models
        self._metrics = metrics
        self._loop = loop
        self._store = Store(settings.home / "serving")
        self._registry = RegistryProcess(settings.tracking_uri)
        # By slot: a champion's is its name, a challenger has one beside it.
        self._served: dict[str, Served] = {}
        self._failed: dict[str, _Failed] = {}
        self._rivals: set[str] = set()
        self._told: dict[str, tuple[Rollout, str | None]] = {}
        self._step: Step = "tags"
        self._away = False
        self._stop = threading.Event()
        self._wake = threading.Event()
        """Ends the pause between two looks."""
        self._begun = 0
        """Looks at the registry, counted by the thread."""
        self._ended = 0
        """Of them, counted by the loop."""
        self._one_ended = asyncio.Event()
        self.restored = asyncio.Event()
        """What the store holds is served, or refused; where it holds nothing, what the registry named first."""
        # A daemon: a download that hangs must not hold up the end of the process.
        self._thread = threading.Thread(target=self._work, name="registry-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        self._registry.end()

    async def look_again(self) -> None:
        """Wait for a look at the registry that has not begun yet; what it finds is served or refused by then."""
        wanted = self._begun + 1
        self._wake.set()
        while self._ended < wanted:
            await self._one_ended.wait()

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
        self._loader = Loader(self._settings, self._metrics, provider, self._loop)
        self._guarded(self._start_from_store)
        if not self._served:
            self._look()
        self._tell(self.restored.set)
        if self._loader.alone:  # from now on there is something to give way to
            step_back()
        while not self._stop.is_set():
            self._look()
            # Who asks for the next look has it sooner, but made-up names must not keep the registry busy.
            self._stop.wait(self._settings.poll_s / 4)
            self._wake.wait(self._settings.poll_s * 3 / 4)

    def _look(self) -> None:
        self._wake.clear()  # before the look is counted: who asks in between gets one more, not one less
        self._begun += 1
        self._guarded(self._follow)
        self._tell(partial(self._end_look, self._begun))

    def _end_look(self, number: int) -> None:
        self._ended = number
        ended, self._one_ended = self._one_ended, asyncio.Event()
        ended.set()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - a disk that is full today must not end the watching for good
            logs.failure("watcher_failed", error)

    def _start_from_store(self) -> None:
        names = self._settings.names
        for served in self._store.remembered():
            if names and served.name not in names:
                continue
            # What was served by following another alias is not what is asked for now.
            pin = self._settings.pin(served.name)
            wanted = served.version == pin.version if pin.version else served.follows == str(pin)
            if not wanted:
                logs.info("stored_version_passed_over", model=served.name, version=served.version, pin=str(pin))
                continue
            bundle = self._store.installed(served.name, served.digest)
            if bundle is None:
                continue
            try:
                self._serve(served, bundle, "champion")
            except Exception as error:  # noqa: BLE001 - whatever it is, the other models are to be served
                # Not a quarantine: the registry may hold a good version, or the same one whole.
                logs.warning("stored_version_refused", model=served.name, version=served.version, reason=str(error))

    def _follow(self) -> None:
        """One look at the registry."""
        try:
            found = self._registry.look(self._settings.names, self._settings.pins)
        except RegistryError as error:
            if not self._away and not self._stop.is_set():
                logs.warning("registry_away", reason=error.message)
            self._away = True
            self._tell(partial(setattr, self._models, "registry_error", error.message))
            return
        if self._away:
            logs.info("registry_back", registry=shown(self._registry.uri))
        self._away = False
        self._tell(partial(setattr, self._models, "registry_error", None))
        for registered in found:
            if registered.wanted is not None:
                self._consider(registered.wanted, "champion")
            self._challenge(registered)
        for name in self._rivals - {registered.name for registered in found}:
            self._dismiss(name)  # the whole model was deleted; its last champion stays

    def _inform(self, registered: Registered) -> None:
        """Hand over what the registry says beside the versions, when it changes."""
        # That a model has no champion is worth a word only where it was asked for.
        missing = registered.missing if registered.name in self._settings.names else None
        told = (registered.rollout, missing)
        if self._told.get(registered.name, (Rollout(), None)) != told:
            self._told[registered.name] = told
            self._tell(partial(self._models.follow, registered.name, *told))

    def _challenge(self, registered: Registered) -> None:
        name = registered.name
        # Without a champion beside it, it would answer nobody.
        challenger = registered.challenger if name in self._served else None
        served = self._served.get(slot(name, "challenger"))
        other = served is not None and challenger is not None and _differ(served, challenger)
        # Before the part of the next one is told: none may take another's, also where the next one cannot be loaded.
        if name in self._rivals and (challenger is None or other):
            self._dismiss(name)
        self._inform(registered)
        if challenger is not None:
            self._rivals.add(name)
            self._consider(challenger, "challenger")

    def _dismiss(self, name: str) -> None:
        self._rivals.discard(name)
        self._served.pop(slot(name, "challenger"), None)
        self._failed.pop(slot(name, "challenger"), None)
        self._tell(partial(self._models.dismiss, name))

    def _consider(self, wanted: Wanted, variant: Variant) -> None:
        kept = slot(wanted.name, variant)
        served = self._served.get(kept)
        if served is not None and not _differ(served, wanted):
            if self._failed.pop(kept, None):
                self._tell(partial(self._models.pardon, wanted.name, variant))
            if variant == "champion" and served.promoted_at != wanted.promoted_at:
                self._tell(partial(self._models.promoted, wanted.name, wanted.promoted_at))
                self._remember(self._served_as(wanted))
            return
        failed = self._failed.get(kept)
        attempts = 0
        if failed is not None and failed.wanted == wanted:
            # Who takes the tag off in the registry asks for another try.
            lifted = failed.marked and wanted.quarantine is None
            if not lifted and (failed.retry_at is None or time.monotonic() < failed.retry_at):
                return
            attempts = failed.attempts
        self._step = "tags"
        try:
            self._adopt(wanted, variant)
        except Exception as error:  # noqa: BLE001 - one model's failure, foreseen or not, must not hold up the others
            self._refuse(wanted, variant, error, attempts)
        else:
            self._failed.pop(kept, None)
            if wanted.quarantine is not None:
                self._mark(wanted, None)

    def _refuse(self, wanted: Wanted, variant: Variant, error: Exception, attempts: int) -> None:
        if self._stop.is_set():  # the service has ended the process that fetches: the version may be a good one
            return
        # What is wrong with the bundle stays wrong; what is wrong with the way to it may pass.
        if not isinstance(error, StrideError | OSError):
            logs.failure("load_failed", error, model=slot(wanted.name, variant), version=wanted.version)
        passing = not isinstance(error, BundleError)
        retry_at = time.monotonic() + min(300.0, 5.0 * 2**attempts) if passing else None
        bad = Quarantined(wanted.name, wanted.version, str(error), time.time(), variant, self._step)
        self._tell(partial(self._models.quarantine, bad))
        known = wanted.quarantine
        marked = known is not None
        if known is None or known.reason != bad.reason:
            since = datetime.fromtimestamp(bad.since, UTC).isoformat(timespec="seconds")
            marked = self._mark(wanted, Quarantine(bad.reason, since)) or marked
        self._failed[slot(wanted.name, variant)] = _Failed(wanted, retry_at, attempts + 1, marked)

    def _mark(self, wanted: Wanted, quarantine: Quarantine | None) -> bool:
        """Say it in the registry too; whether that could be done. What is served does not depend on it."""
        try:
            self._registry.mark(wanted, quarantine)
        except RegistryError as error:
            logs.warning("quarantine_not_marked", model=wanted.name, version=wanted.version, reason=error.message)
            return False
        return True

    def _adopt(self, wanted: Wanted, variant: Variant) -> None:
        for tag, value in ((BUNDLE_URI, wanted.uri), (BUNDLE_DIGEST, wanted.digest)):
            if not value:
                who = f"model {wanted.name!r} version {wanted.version}"
                raise BundleError(f"{who} has no tag {tag}; register it with `stride promote`.")
        started = time.perf_counter()
        bundle = self._store.install(wanted.name, wanted.digest, partial(self._fetch, wanted))
        fetched = time.perf_counter()
        served = self._served_as(wanted)
        self._serve(served, bundle, variant)
        if variant == "champion":  # a challenger is not what a start without the registry is to serve
            self._remember(served)
        self._metrics.loaded(slot(wanted.name, variant), fetched - started, time.perf_counter() - fetched)

    def _fetch(self, wanted: Wanted, directory: Path) -> Path:
        self._step = "fetch"
        path = self._registry.download(wanted, directory)
        self._step = "verify"
        return path

    def _served_as(self, wanted: Wanted) -> Served:
        pin = self._settings.pin(wanted.name)
        return Served(wanted.name, wanted.version, wanted.digest, wanted.promoted_at, str(pin))

    def _serve(self, served: Served, bundle: Bundle, variant: Variant) -> None:
        """Load, warm and prove the version, then hand it over."""
        self._step = "load"
        engine = self._loader.load(bundle)
        self._served[slot(served.name, variant)] = served
        self._tell(lambda: self._models.swap(self._loader.model(served, engine, variant)))

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


def _differ(served: Served, wanted: Wanted) -> bool:
    return (served.version, served.digest) != (wanted.version, wanted.digest)
