"""The models that are served: name -> the one version that answers, swapped whole while requests run."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

from contracts.errors import DeviceError, NoModel, NotFound
from services.inference import logs
from services.inference.batcher import Batcher
from services.inference.engine import Engine
from services.inference.metrics import Metrics
from services.inference.store import Served


class Model:
    """One loaded version. A request holds on to the same Model from its first row to its answer."""

    def __init__(self, served: Served, engine: Engine, batcher: Batcher) -> None:
        manifest = engine.bundle.manifest
        self.served = served
        self.engine = engine
        self.batcher = batcher
        self.name = served.name
        self.version = served.version
        self.promoted_at = served.promoted_at
        self.loaded_at = time.time()
        self.spec = manifest.input
        self.labels = manifest.labels
        # What every answer repeats is encoded once.
        self.labels_json = tuple(json.dumps(label) for label in manifest.labels)
        parts = {"name": self.name, "version": self.version, "provider": engine.provider.name}
        self.head_json = f'{{"model": {json.dumps(parts)}, "predictions": ['

    def describe(self) -> dict[str, Any]:
        manifest = self.engine.bundle.manifest
        return {
            "version": self.version,
            "digest": self.served.digest,
            "provider": self.engine.provider.name,
            "provider_reason": self.engine.provider.reason,
            "labels": list(self.labels),
            "input": manifest.input.model_dump(),
            "metrics": manifest.metrics,
            "run_id": manifest.provenance.run_id,
            "promoted_at": self.promoted_at,
            "loaded_at": round(self.loaded_at, 3),
            "load_seconds": round(self.engine.load_s, 3),
            "golden_difference": self.engine.golden_difference,
        }


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A version that was tried and is not served."""

    name: str
    version: str
    reason: str
    since: float

    def describe(self) -> dict[str, Any]:
        return {"version": self.version, "reason": self.reason, "since": round(self.since, 3)}


class Models:
    """Belongs to the event loop: every method is called on it, so a lookup and a swap cannot cross."""

    def __init__(self, *, default: str | None, metrics: Metrics) -> None:
        self._default = default
        self._metrics = metrics
        self._models: dict[str, Model] = {}
        self._quarantine: dict[str, Quarantined] = {}
        self.refusal: DeviceError | None = None
        """Why nothing can be served at all: the device that was asked for is not there."""
        self.registry_error: str | None = None
        """Why the registry did not answer last time; None when it did."""

    def get(self, name: str | None = None) -> Model:
        """The model of that name, or the default one.

        Raises:
            DeviceError: the required device is not there.
            NoModel: nothing is loaded yet (or not the default, or the one named is in quarantine).
            NotFound: no model has that name.
        """
        if self.refusal is not None:
            raise self.refusal
        wanted = self._default if name is None else name
        if wanted is None:
            if not self._models:
                raise NoModel(f"no model is loaded yet{self._why()}; promote one, it is picked up within seconds.")
            return max(self._models.values(), key=lambda model: (model.promoted_at, model.name))
        if (model := self._models.get(wanted)) is not None:
            return model
        if (bad := self._quarantine.get(wanted)) is not None:
            raise NoModel(f"model {wanted!r} has no version that can be served: version {bad.version}: {bad.reason}")
        if name is None or not self._models:
            raise NoModel(f"model {wanted!r} is not loaded yet{self._why()}; promote a version of it.")
        raise NotFound(f"no model is named {wanted!r}; served are {', '.join(sorted(self._models))}.")

    def loaded(self, name: str) -> Served | None:
        model = self._models.get(name)
        return model.served if model else None

    def swap(self, model: Model) -> None:
        """Serve `model` from now on; the version before it answers what it has begun and is then freed."""
        old = self._models.get(model.name)
        self._models[model.name] = model
        self._quarantine.pop(model.name, None)
        self._metrics.serves(model.name, model.version, model.engine.provider.name, old.version if old else None)
        logs.info(
            "model_served",
            model=model.name,
            version=model.version,
            replaces=old.version if old else None,
            provider=model.engine.provider.name,
            provider_reason=model.engine.provider.reason,
            load_seconds=round(model.engine.load_s, 3),
            golden_difference=model.engine.golden_difference,
        )
        if old is not None:
            old.batcher.close()

    def promoted(self, name: str, promoted_at: int) -> None:
        """The champion moved without a new bundle to load (a rollback to what is served)."""
        if (model := self._models.get(name)) is not None:
            model.promoted_at = promoted_at

    def quarantine(self, bad: Quarantined) -> None:
        self._quarantine[bad.name] = bad
        self._metrics.quarantined(bad.name)
        logs.warning("version_quarantined", model=bad.name, version=bad.version, reason=bad.reason)

    def pardon(self, name: str) -> None:
        """The champion is a good version again."""
        self._quarantine.pop(name, None)

    def describe(self) -> dict[str, Any]:
        names = sorted({*self._models, *self._quarantine})
        try:
            default = self.get().name
        except (NoModel, DeviceError):
            default = None
        entries = []
        for name in names:
            model, bad = self._models.get(name), self._quarantine.get(name)
            entries.append(
                {
                    "name": name,
                    "default": name == default,
                    "serving": model.describe() if model else None,
                    "quarantined": bad.describe() if bad else None,
                }
            )
        refusal = self.refusal.message if self.refusal else None
        return {"models": entries, "default": default, "refusal": refusal, "registry_error": self.registry_error}

    async def drain(self) -> None:
        """Close every batcher and wait for its thread, without holding the loop."""
        for model in self._models.values():
            model.batcher.close()
        threads = [model.batcher.thread for model in self._models.values()]
        await asyncio.gather(*(asyncio.to_thread(thread.join, 1.0) for thread in threads))

    def _why(self) -> str:
        return f" ({self.registry_error.rstrip('.')})" if self.registry_error else ""
