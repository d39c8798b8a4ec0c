"""The models that are served: name -> the version that answers, and the challenger beside it; swapped whole."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any

from contracts.errors import DeviceError, NoModel, NotFound, StrideError
from contracts.registry import Rollout
from services.inference import logs
from services.inference.batch import Images, Probabilities
from services.inference.drift import Drift
from services.inference.errors import NotYet, UnknownModel
from services.inference.metrics import Metrics
from services.inference.model import Model, Quarantined, slot, unlike
from services.inference.shadow import Shadow
from services.inference.store import Served
from services.inference.variants import Choice, Variant


@dataclass(frozen=True, slots=True)
class _Pair:
    """A challenger and its part: settled when something changes, not with every request."""

    challenger: Model
    percent: float
    shadow: bool
    note: str | None
    """Why it takes a smaller part than the registry says."""


class Models:
    """Belongs to the event loop: every method is called on it, so a lookup and a swap cannot cross."""

    def __init__(self, *, default: str | None, metrics: Metrics, drift_window: int = 0) -> None:
        self._default = default
        self._metrics = metrics
        self._drift_window = drift_window
        self._shadow = Shadow(metrics)
        self._models: dict[str, Model] = {}
        self._challengers: dict[str, Model] = {}
        self._rollouts: dict[str, Rollout] = {}
        self._pairs: dict[str, _Pair] = {}
        self._quarantine: dict[str, Quarantined] = {}
        self._missing: dict[str, str] = {}
        self.refusal: DeviceError | None = None
        """Why nothing can be served at all: the device that was asked for is not there."""
        self.registry_error: str | None = None
        """Why the registry did not answer last time; None when it did."""

    def get(self, name: str | None = None, choice: Choice | None = None) -> Model:
        """The model of that name, or the default one; its challenger where `choice` falls on it.

        Raises:
            DeviceError: the required device is not there.
            NotYet: nothing is loaded yet, or not the default, or the registry did not hold it when it was last asked.
            NoModel: the one named is in quarantine.
            UnknownModel: no model has that name.
        """
        model = self._champion(name)
        if choice is None or (pair := self._pairs.get(model.name)) is None:
            return model
        return pair.challenger if choice.falls_on_challenger(pair.percent) else model

    def alone(self, name: str | None) -> Model | None:
        """As `get`; None where nobody can answer, or there are two who may."""
        try:
            model = self._champion(name)
        except StrideError:
            return None
        return None if model.name in self._pairs else model

    def version(self, name: str, version: str) -> Model:
        """The champion or the challenger of that name, whichever has this version.

        Raises:
            DeviceError, NotYet, NoModel, UnknownModel: as `get`.
            NotFound: neither has that version.
        """
        champion = self._champion(name)
        for model in (champion, self._challengers.get(champion.name)):
            if model is not None and model.version == version:
                return model
        served = ", ".join(self.versions(champion.name))
        raise NotFound(f"model {name!r} has no version {version[:40]!r} that is served; served are {served}.")

    def versions(self, name: str) -> list[str]:
        """The versions of a served model that can be asked for by number: the champion's, then the challenger's."""
        found = (models[name].version for models in (self._models, self._challengers) if name in models)
        return list(dict.fromkeys(found))

    def stand_in(self, failed: Model, choice: Choice) -> Model | None:
        """Who answers where a challenger failed that the client did not ask for: it is our trial, not the client's."""
        if failed.variant == "champion" or choice.wish is not None:
            return None
        champion = self._models.get(failed.name)
        if champion is None or unlike(champion, failed) is not None:  # it has become another while this one failed
            return None
        self._metrics.stand_ins.labels(failed.name).inc()
        return champion

    def answered(self, model: Model, images: Images, probabilities: Probabilities) -> None:
        """Count an answer; where the challenger is a shadow it is asked as well, later and only if it is idle."""
        self._metrics.answers.labels(model.name, model.variant).inc()
        if model.drift is not None:
            model.drift.observe(probabilities)
        # Not what a former champion still answers: the challenger has been matched with the present one.
        pair = self._pairs.get(model.name)
        if pair is not None and pair.shadow and model is self._models.get(model.name):
            self._shadow.offer(model, pair.challenger, images, probabilities)

    def loaded(self, name: str) -> Served | None:
        model = self._models.get(name)
        return model.served if model else None

    def swap(self, model: Model) -> None:
        """Serve `model` from now on; the version before it answers what it has begun and is then freed."""
        among = self._models if model.variant == "champion" else self._challengers
        old = among.get(model.name)
        among[model.name] = model
        kept = slot(model.name, model.variant)
        self._quarantine.pop(kept, None)
        self._metrics.serves(kept, model.version, model.engine.provider.name, model.engine.precision)
        logs.info(
            "model_served",
            model=kept,
            version=model.version,
            replaces=old.version if old else None,
            provider=model.engine.provider.name,
            provider_reason=model.engine.provider.reason,
            precision=model.engine.precision,
            precision_reason=model.engine.plan.reason,
            threads=model.engine.threads,
            load_seconds=round(model.engine.load_s, 3),
            golden_difference=model.engine.golden_difference,
        )
        self._match(model.name)
        self._watch_drift(model, kept)
        if old is not None:
            old.drift = None  # what it still answers says nothing of the new version
            old.batcher.close()

    def promoted(self, name: str, promoted_at: int) -> None:
        """The champion moved without a new bundle to load (a rollback to what is served)."""
        if (model := self._models.get(name)) is not None:
            model.promoted_at = promoted_at

    def quarantine(self, bad: Quarantined) -> None:
        kept = slot(bad.name, bad.variant)
        self._quarantine[kept] = bad
        self._metrics.quarantined(kept, bad.step)
        logs.warning("version_quarantined", model=kept, version=bad.version, step=bad.step, reason=bad.reason)

    def pardon(self, name: str, variant: Variant = "champion") -> None:
        """What is wanted is a good version again."""
        if self._quarantine.pop(slot(name, variant), None) is not None:
            self._metrics.pardoned(slot(name, variant))

    def follow(self, name: str, rollout: Rollout, missing: str | None) -> None:
        """What the registry says of a model beside its versions: the challenger's part, or why nothing is wanted."""
        self._rollouts[name] = rollout
        if missing is None:
            self._missing.pop(name, None)
        else:
            self._missing[name] = missing
            logs.warning("model_missing", model=name, reason=missing)
        self._match(name)

    def dismiss(self, name: str) -> None:
        """The registry names no challenger any more: it answers what it has begun and is then freed."""
        self.pardon(name, "challenger")
        if (model := self._challengers.pop(name, None)) is not None:
            self._pairs.pop(name, None)
            kept = slot(name, "challenger")
            self._metrics.leaves(kept)
            self._metrics.drifted(kept, None, None, 0)
            model.drift = None
            logs.info("challenger_dismissed", model=kept, version=model.version)
            model.batcher.close()

    def describe(self) -> dict[str, Any]:
        names = sorted({*self._models, *self._missing, *(bad.name for bad in self._quarantine.values())})
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
                    "follows": model.served.follows if model else None,
                    "quarantined": bad.describe() if bad else None,
                    "missing": self._missing.get(name),
                    "challenger": self._describe_challenger(name),
                }
            )
        refusal = self.refusal.message if self.refusal else None
        return {"models": entries, "default": default, "refusal": refusal, "registry_error": self.registry_error}

    async def drain(self) -> None:
        """Close every batcher and wait for its thread, without holding the loop."""
        models = [*self._models.values(), *self._challengers.values()]
        for model in models:
            model.batcher.close()
        await asyncio.gather(*(asyncio.to_thread(model.batcher.thread.join, 1.0) for model in models))

    def _champion(self, name: str | None) -> Model:
        if self.refusal is not None:
            raise self.refusal
        wanted = self._default if name is None else name
        if wanted is None:
            if not self._models:
                raise NotYet(f"no model is loaded yet{self._why()}; promote one, it is picked up within seconds.")
            return max(self._models.values(), key=lambda model: (model.promoted_at, model.name))
        if (model := self._models.get(wanted)) is not None:
            return model
        if (bad := self._quarantine.get(wanted)) is not None:
            raise NoModel(f"model {wanted!r} has no version that can be served: version {bad.version}: {bad.reason}")
        if (missing := self._missing.get(wanted)) is not None:
            raise NotYet(f"model {wanted!r} is not served: {missing}.")
        if name is None or not self._models:
            raise NotYet(f"model {wanted!r} is not loaded yet{self._why()}; promote a version of it.")
        raise UnknownModel(f"no model is named {wanted!r}; served are {', '.join(sorted(self._models))}.")

    def _watch_drift(self, model: Model, kept: str) -> None:
        publish = partial(self._metrics.drifted, kept)
        reference = model.engine.measured.reference
        if reference is not None and self._drift_window:
            model.drift = Drift(reference, window=self._drift_window, publish=publish)
        else:
            publish(None, None, 0)

    def _match(self, name: str) -> None:
        """Settle what the challenger of a model takes part in, after a change of either."""
        champion, challenger = self._models.get(name), self._challengers.get(name)
        if champion is None or challenger is None:
            self._pairs.pop(name, None)
            return
        rollout = self._rollouts.get(name, Rollout())
        percent, shadow, note = rollout.percent, rollout.shadow, rollout.problem
        if (why := unlike(champion, challenger)) is not None:
            # Who sends tensors has made them for the champion, and who reads labels knows the champion's.
            percent, shadow, note = 0.0, False, f"{why}; it answers only who asks for it"
        self._pairs[name] = _Pair(challenger, percent, shadow, note)

    def _describe_challenger(self, name: str) -> dict[str, Any] | None:
        model, bad = self._challengers.get(name), self._quarantine.get(slot(name, "challenger"))
        if model is None and bad is None:
            return None
        pair = self._pairs.get(name)
        return {
            "percent": pair.percent if pair else 0.0,
            "shadow": pair.shadow if pair else False,
            "note": pair.note if pair else None,
            "serving": model.describe() if model else None,
            "quarantined": bad.describe() if bad else None,
        }

    def _why(self) -> str:
        return f" ({self.registry_error.rstrip('.')})" if self.registry_error else ""
