"""A challenger beside the champion: a share of the requests (canary), or all of them unseen (shadow).

What answers clients has passed the gate: a canary is judged as a promotion is. A shadow answers nobody but who asks for
it by name (the header X-Stride-Variant), so it is verified only. Beginning and end are entries of the history.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contracts.bundle import Bundle, Manifest
from contracts.errors import RegistryError, RequestError
from contracts.recipe import Gate
from contracts.registry import Rollout
from pipelines import history, promotion, registry, rollout
from pipelines.export import Say, silent
from pipelines.judging import judge, load_recipe, record
from pipelines.model_lock import locked
from pipelines.refusal import refuse, refuse_quarantined
from pipelines.registry import Version

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True, kw_only=True, slots=True)
class Challenge:
    """The challenger of a model after a command."""

    action: Literal["challenge", "stop", "unchanged", "show"]
    model: str
    champion: str | None
    challenger: str | None
    percent: float
    shadow: bool
    former: str | None
    """The challenger before."""
    quarantine: str | None
    """Why a service refuses the challenger, where one does."""
    problem: str | None
    """What is wrong with tags that were edited by hand."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def challenge(
    model: str,
    version: str,
    *,
    percent: float = 10.0,
    shadow: bool = False,
    thresholds: Gate | None = None,
    say: Say = silent,
) -> Challenge:
    """Try a registered version beside the champion; called again, change how it takes part.

    Args:
        percent: The share of requests that it answers, 0 to 100. Above 0 the gate is asked.
        shadow: Have it also compute what the champion answers, to be compared.
        thresholds: The gate's; those of the recipe of the version's run without them.
        say: Gets a line for each stage.

    Raises:
        RequestError: percent is out of range, or the version would take no part.
        Refused: the gate said no, or a service has refused this version.
        BundleError: the bundle of the version or of the champion is incomplete or changed.
        RegistryError: no such version, no champion, the version is the champion, or it cannot stand in its place.
    """
    _check(percent, shadow)
    client = registry.connect()
    with locked(model, say=say), tempfile.TemporaryDirectory() as directory:
        promotion.settle(client, model, say)
        candidate = registry.get_version(client, model, version)
        champion = _champion(client, model)
        _refuse_known(client, candidate, champion)
        say(f"verifying {candidate.who} as a server would load it")
        bundle = registry.read_back(client, candidate, Path(directory))
        _admit(client, bundle, candidate.run_id, champion, percent, thresholds, say, version=candidate)
        return _begin(client, candidate, Rollout(percent, shadow))


def challenge_run(
    bundle: Bundle, run_id: str, *, percent: float = 10.0, shadow: bool = False, say: Say = silent
) -> Challenge:
    """As `challenge`, with the exported bundle of a run, which is registered once nothing speaks against it."""
    _check(percent, shadow)
    client = registry.connect()
    model = bundle.manifest.name
    with locked(model, say=say):
        promotion.settle(client, model, say)
        champion = _champion(client, model)
        for known in registry.versions_of_run(client, run_id):
            if (known.model, known.digest) == (model, bundle.digest):
                _refuse_known(client, known, champion)
        _admit(client, bundle, run_id, champion, percent, None, say)
        say(f"registering run {run_id} as a version of {model}")
        return _begin(client, registry.register(bundle, run_id), Rollout(percent, shadow))


def stop(model: str, *, say: Say = silent) -> Challenge:
    """Take the challenger away; the champion answers everything again.

    Raises:
        RegistryError: the model has no challenger, or the server is away.
    """
    client = registry.connect()
    with locked(model, say=say):
        promotion.settle(client, model, say)
        former = rollout.challenger(client, model)
        if former is None:
            raise RegistryError(f"model '{model}' has no challenger, so there is nothing to stop.")
        entry = history.begin(
            client,
            model=model,
            action="dismiss",
            from_version=former.version,
            to_version=None,
            run_id=former.run_id,
            reasons=("stopped by hand",),
        )
        rollout.remove_challenger(client, model)
        history.finish(client, entry)
        return _state(client, model, "stop", former)


def show(model: str) -> Challenge:
    """The challenger of a model, if it has one.

    Raises:
        RegistryError: the model has neither champion nor challenger, or the server is away.
    """
    client = registry.connect()
    found = _state(client, model, "show", None)
    if found.champion is None and found.challenger is None:
        raise RegistryError(f"model '{model}' has neither a champion nor a challenger; see `stride history`.")
    return found


def _check(percent: float, shadow: bool) -> None:
    if not 0 <= percent <= 100:  # also refuses nan
        raise RequestError(f"--percent is {percent:g}; give a share of the requests from 0 to 100.")
    if percent == 0 and not shadow:
        raise RequestError("--percent is 0 without --shadow, so nothing would be tried; raise it, or add --shadow.")


def _champion(client: MlflowClient, model: str) -> Version:
    if (champion := registry.champion(client, model)) is None:
        raise RegistryError(f"model '{model}' has no champion to be challenged; promote a version of it first.")
    return champion


def _refuse_known(client: MlflowClient, version: Version, champion: Version) -> None:
    """Refuse what the registry alone says cannot be tried."""
    if champion.version == version.version:
        raise RegistryError(f"{version.who} is the champion already; name a version that is not.")
    refuse_quarantined(client, version, champion)


def _admit(
    client: MlflowClient,
    bundle: Bundle,
    run_id: str,
    champion: Version,
    percent: float,
    thresholds: Gate | None,
    say: Say,
    *,
    version: Version | None = None,
) -> None:
    """Refuse a bundle that cannot stand in the champion's place; a canary has to pass the gate besides."""
    if (why := unlike(bundle.manifest, registry.fetch_manifest(client, champion))) is not None:
        who, target = (version.who, f"{version.model} {version.version}") if version else (f"run {run_id}", run_id)
        raise RegistryError(
            f"{who} cannot be tried beside the champion: {why}; promote it instead (`stride promote {target}`)."
        )
    if percent > 0:
        verdict = judge(client, bundle, champion, load_recipe(run_id), thresholds, False, None, say)
        record(client, run_id, verdict)
        if not verdict.accepted:
            raise refuse(client, champion.model, champion, run_id, verdict)


def _begin(client: MlflowClient, version: Version, wanted: Rollout) -> Challenge:
    """Record the trial, move alias and tags, close the record."""
    model = version.model
    former = rollout.challenger(client, model)
    if former is not None and former.version == version.version and rollout.read(client, model) == wanted:
        return _state(client, model, "unchanged", former)
    entry = history.begin(
        client,
        model=model,
        action="challenge",
        from_version=former.version if former else None,
        to_version=version.version,
        run_id=version.run_id,
        reasons=(f"{wanted.percent:g}% of the requests{', and a shadow of the others' if wanted.shadow else ''}",),
    )
    rollout.set_challenger(client, version, wanted)
    history.finish(client, entry)
    return _state(client, model, "challenge", former)


def unlike(own: Manifest, champion: Manifest) -> str | None:
    """Why a version cannot stand in the champion's place, None where it can.

    A challenger answers the champion's questions in the champion's words; a service would give it no part otherwise.
    """
    if own.labels != champion.labels:
        return f"its labels {list(own.labels)} differ from the champion's {list(champion.labels)}"
    if own.input.shape != champion.input.shape:
        sizes = ("x".join(map(str, manifest.input.shape)) for manifest in (own, champion))
        return "its input {} differs from the champion's {}".format(*sizes)
    return None if own.input == champion.input else "its images are prepared otherwise than the champion's"


def _state(client: MlflowClient, model: str, action: Literal["challenge", "stop", "unchanged", "show"],
           former: Version | None) -> Challenge:  # fmt: skip
    champion, found = registry.champion(client, model), rollout.challenger(client, model)
    part = rollout.read(client, model) if found else Rollout()
    return Challenge(
        action=action,
        model=model,
        champion=champion.version if champion else None,
        challenger=found.version if found else None,
        percent=part.percent,
        shadow=part.shadow,
        former=former.version if former else None,
        quarantine=found.quarantine.reason if found and found.quarantine else None,
        problem=part.problem,
    )
