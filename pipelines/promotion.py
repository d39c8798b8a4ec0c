"""Moving the champion: judged, verified, recorded, and only then the alias.

One promotion of a model runs at a time on a machine (a lock under STRIDE_HOME). Several machines that share a server
are held apart by a second look at the champion right before the alias moves: who judged against one that has been
replaced meanwhile stops and moves nothing.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contracts.bundle import Bundle
from contracts.errors import RegistryError
from contracts.recipe import Gate
from contracts.registry import CHAMPION, PROMOTED_AT
from pipelines import history, quarantine, registry, rollout
from pipelines.export import Say, silent
from pipelines.gate import Verdict
from pipelines.judging import judge, load_recipe, record
from pipelines.model_lock import locked
from pipelines.refusal import refuse, refuse_quarantined
from pipelines.registry import Version

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from services.training.data.dataset import Dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Promotion:
    """What became of a promotion or a rollback."""

    action: Literal["promote", "rollback", "unchanged"]
    model: str
    version: str
    """The champion now."""
    former: str | None
    """The champion before."""
    run_id: str
    digest: str
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def submit(
    bundle: Bundle,
    run_id: str,
    *,
    thresholds: Gate | None = None,
    allow_new_labels: bool = False,
    lift_quarantine: bool = False,
    dataset: Dataset | None = None,
    say: Say = silent,
) -> Promotion:
    """Judge the bundle of a run, register it and make it the champion of its model.

    Args:
        bundle: As `pipelines.export.export` gives it.
        run_id: The run that holds it.
        thresholds: The gate's; those of the run's recipe without them.
        allow_new_labels: Let labels through that are not the champion's.
        lift_quarantine: Take the version out of quarantine, so that the services that refused it try it again.
        dataset: The run's data, where they are loaded already.
        say: Gets a line for each stage.

    Raises:
        Refused: the gate said no, or a service has refused this version. Nothing is registered and the champion stays;
            the refusal is in the history.
        BundleError: the bundle is incomplete or changed.
        RegistryError: the server is away, or another machine moved the champion meanwhile.
    """
    model = bundle.manifest.name
    client = registry.connect()
    with locked(model, say=say):
        settle(client, model, say)
        champion = registry.champion(client, model)
        if (same := _unchanged(client, champion, bundle, lift_quarantine)) is not None:
            return same
        for known in registry.versions_of_run(client, run_id):
            if (known.model, known.digest) == (model, bundle.digest):
                refuse_quarantined(client, known, champion, lift=lift_quarantine)
        recipe = load_recipe(run_id)
        verdict = judge(client, bundle, champion, recipe, thresholds, allow_new_labels, dataset, say)
        record(client, run_id, verdict)
        if not verdict.accepted:
            raise refuse(client, model, champion, run_id, verdict)
        say(f"registering run {run_id} as a version of {model}")
        version = registry.register(bundle, run_id)
        return _promote(client, version, champion, verdict, lift_quarantine, say)


def promote(
    model: str,
    version: str,
    *,
    thresholds: Gate | None = None,
    allow_new_labels: bool = False,
    lift_quarantine: bool = False,
    say: Say = silent,
) -> Promotion:
    """Judge a registered version and make it the champion; arguments and errors as in `submit`.

    Raises:
        RegistryError: also where there is no such version.
    """
    client = registry.connect()
    with locked(model, say=say), tempfile.TemporaryDirectory() as directory:
        settle(client, model, say)
        candidate = registry.get_version(client, model, version)
        bundle = registry.read_back(client, candidate, Path(directory))
        champion = registry.champion(client, model)
        if (same := _unchanged(client, champion, bundle, lift_quarantine)) is not None:
            return same
        refuse_quarantined(client, candidate, champion, lift=lift_quarantine)
        recipe = load_recipe(candidate.run_id)
        verdict = judge(client, bundle, champion, recipe, thresholds, allow_new_labels, None, say)
        record(client, candidate.run_id, verdict)
        if not verdict.accepted:
            raise refuse(client, model, champion, candidate.run_id, verdict)
        return _promote(client, candidate, champion, verdict, lift_quarantine, say)


def rollback(model: str, *, to: str | None = None, say: Say = silent) -> Promotion:
    """Make the former champion the champion again (or version `to`); a second rollback goes one further back.

    The gate is not asked: a rollback leads back to what has been served. The version is verified all the same.

    Raises:
        RegistryError: the model has no champion or no former one, there is no such version or it never was the
            champion, or the server is away.
        BundleError: the former champion's bundle is incomplete or changed; the champion stays.
    """
    client = registry.connect()
    with locked(model, say=say), tempfile.TemporaryDirectory() as directory:
        settle(client, model, say)
        champion = registry.champion(client, model)
        if champion is None:
            raise RegistryError(f"model '{model}' has no champion, so there is nothing to roll back; ship it first.")
        target = registry.get_version(client, model, to) if to else _former(client, champion, say)
        if target.version == champion.version:
            raise RegistryError(f"{champion.who} is the champion already; name another version to roll back to.")
        if target.version not in history.champions(history.read(client, model)):
            advice = f"`stride promote {model} {target.version}` asks the gate first"
            raise RegistryError(
                f"{target.who} has never been the champion, a rollback leads to one that has; {advice}."
            )
        if target.quarantine is not None:
            advice = f"`stride promote {model} {target.version} --lift-quarantine` has it tried again"
            reason = target.quarantine.reason.rstrip(".")
            raise RegistryError(f"{target.who} is in quarantine, a service refused it ({reason}); {advice}.")
        say(f"verifying {target.who}")
        registry.read_back(client, target, Path(directory))
        reason = f"rolled back from version {champion.version} to version {target.version}"
        _move(client, target, champion, "rollback", (reason,))
        say(f"the champion of {model} is version {target.version} again")
        return _result("rollback", target, champion, (reason,))


def _unchanged(client: MlflowClient, champion: Version | None, bundle: Bundle, lift: bool) -> Promotion | None:
    """The answer where the bundle is the champion's already and is still whole."""
    if champion is None or champion.digest != bundle.digest:
        return None
    with tempfile.TemporaryDirectory() as directory:
        registry.read_back(client, champion, Path(directory))
    reasons = [f"run {champion.run_id} is the champion already, as version {champion.version}"]
    if champion.quarantine is not None:
        if lift:
            quarantine.lift(client, champion)
            reasons.append("it was in quarantine and is tried again")
        else:
            why = champion.quarantine.reason.rstrip(".")
            reasons.append(f"a service refused it and serves the one before ({why}); --lift-quarantine tries it again")
    return _result("unchanged", champion, champion, tuple(reasons))


def _promote(
    client: MlflowClient, version: Version, champion: Version | None, verdict: Verdict, lift: bool, say: Say
) -> Promotion:
    with tempfile.TemporaryDirectory() as directory:
        say(f"verifying {version.who} as a server would load it")
        registry.read_back(client, version, Path(directory))
    if lift and version.quarantine is not None:
        quarantine.lift(client, version)  # before the alias moves: a service must not find it there still refused
    _move(client, version, champion, "promote", verdict.reasons)
    say(f"the champion of {version.model} is version {version.version}")
    return _result("promote", version, champion, verdict.reasons)


def _move(
    client: MlflowClient,
    version: Version,
    champion: Version | None,
    action: Literal["promote", "rollback"],
    reasons: Sequence[str],
) -> None:
    """Record, move the alias, close the record; `champion` is the one that the decision was made against."""
    found = registry.champion(client, version.model)
    if (found and found.version) != (champion and champion.version):
        now, then = (f"version {item.version}" if item else "none" for item in (found, champion))
        raise RegistryError(f"model '{version.model}': its champion moved from {then} to {now} meanwhile; try again.")
    entry = history.begin(
        client,
        model=version.model,
        action=action,
        from_version=champion.version if champion else None,
        to_version=version.version,
        run_id=version.run_id,
        reasons=reasons,
    )
    with registry.registry_errors(f"to make {version.who} the champion"):
        client.set_registered_model_alias(version.model, CHAMPION, version.version)
    _end_trial(client, version)
    _stamp(client, version.model)
    history.finish(client, entry)


def _stamp(client: MlflowClient, model: str) -> None:
    with registry.registry_errors(f"to tag model {model}"):
        client.set_registered_model_tag(model, PROMOTED_AT, str(int(time.time() * 1000)))


def _end_trial(client: MlflowClient, champion: Version) -> None:
    """A challenger that has become the champion is no challenger any more."""
    tried = rollout.challenger(client, champion.model)
    if tried is not None and tried.version == champion.version:
        rollout.remove_challenger(client, champion.model)


def settle(client: MlflowClient, model: str, say: Say) -> None:
    """Close the entries of a promotion that died; the lock is held, so none of them is under way here."""

    def complete(entry: history.Entry) -> None:
        if entry.action == "dismiss":
            rollout.remove_tags(client, model)
        if entry.action in ("promote", "rollback") and (champion := registry.champion(client, model)) is not None:
            _end_trial(client, champion)
            _stamp(client, model)

    for entry in history.settle(client, model, complete=complete):
        versions = f"version {entry.from_version or 'none'} to {entry.to_version or 'none'}"
        say(f"an earlier {entry.action} ({versions}) was interrupted: {entry.note}")


def _former(client: MlflowClient, champion: Version, say: Say) -> Version:
    for number in history.former_champions(history.read(client, champion.model), champion.version):
        # Versions can be deleted in MLflow's UI; the next older one still stands.
        if (found := registry.find_version(client, champion.model, number)) is None:
            continue
        if found.quarantine is None:
            return found
        say(f"{found.who} is passed over: a service refuses it ({found.quarantine.reason.rstrip('.')})")
    raise RegistryError(
        f"{champion.who} has no former champion in the history; name one with --to VERSION, see `stride history`."
    )


def _result(
    action: Literal["promote", "rollback", "unchanged"],
    version: Version,
    champion: Version | None,
    reasons: tuple[str, ...],
) -> Promotion:
    return Promotion(
        action=action,
        model=version.model,
        version=version.version,
        former=champion.version if champion else None,
        run_id=version.run_id,
        digest=version.digest or "",
        reasons=reasons,
    )
