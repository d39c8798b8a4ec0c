"""One loaded version of a model, and one that could not be loaded."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from contracts.registry import CHALLENGER
from services.inference.batcher import Batcher
from services.inference.drift import Drift
from services.inference.engine import Engine
from services.inference.store import Served
from services.inference.variants import Variant


class Model:
    """One loaded version. A request holds on to the same Model from its first row to its answer."""

    def __init__(self, served: Served, engine: Engine, batcher: Batcher, variant: Variant = "champion") -> None:
        manifest = engine.bundle.manifest
        self.served = served
        self.engine = engine
        self.batcher = batcher
        self.variant = variant
        self.name = served.name
        self.version = served.version
        self.promoted_at = served.promoted_at
        self.loaded_at = time.time()
        self.spec = manifest.input
        self.labels = manifest.labels
        # What every answer repeats is encoded once.
        self.labels_json = tuple(json.dumps(label) for label in manifest.labels)
        parts = {"name": self.name, "version": self.version, "provider": engine.provider.name}
        if variant == "challenger":
            parts["variant"] = variant
        self.head_json = f'{{"model": {json.dumps(parts)}, "predictions": ['
        self.headers = (
            (b"x-stride-provider", engine.provider.name.encode()),
            (b"x-stride-version", self.version.encode()),
            (b"x-stride-variant", variant.encode()),
        )
        """Of every answer: which one version gave it."""
        lines = b"".join(b"%b: %b\r\n" % field for field in self.headers)
        self.head = b"content-type: application/json\r\n" + lines + b"content-length: "
        """Of an answer with predictions, as it is sent."""
        self.drift: Drift | None = None
        """None where the bundle does not tell how its test images were answered."""

    def describe(self) -> dict[str, Any]:
        manifest = self.engine.bundle.manifest
        return {
            "version": self.version,
            "digest": self.served.digest,
            "provider": self.engine.provider.name,
            "provider_reason": self.engine.provider.reason,
            "precision": self.engine.precision,
            "precision_reason": self.engine.plan.reason,
            "threads": self.engine.threads,
            "labels": list(self.labels),
            "input": manifest.input.model_dump(),
            "metrics": self.engine.measured.metrics,
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
    variant: Variant = "champion"
    step: str = "load"
    """What it failed at: tags, fetch, verify or load."""

    def describe(self) -> dict[str, Any]:
        return {"version": self.version, "reason": self.reason, "step": self.step, "since": round(self.since, 3)}


def slot(name: str, variant: Variant) -> str:
    """What a champion or a challenger is called in metrics and logs; written as the alias is in STRIDE_MODELS."""
    return name if variant == "champion" else f"{name}@{CHALLENGER}"


def unlike(champion: Model, challenger: Model) -> str | None:
    """Why the challenger cannot stand in the champion's place, None when it can."""
    if champion.labels != challenger.labels:
        return "its labels are not the champion's"
    if champion.spec != challenger.spec:
        return "its input is not the champion's"
    return None
