"""The history of the champions: promotions, refusals, rollbacks and challengers, appended and never rewritten.

An entry is one MLflow run in the experiment `stride/history`: so it lies where the models lie (SQLite, Postgres or a
server), is seen and filtered in MLflow's UI, and needs no second store to back up. The run is begun before the alias
moves and finished after it, so a crash in between leaves a running entry, which `history` reports and the next
promotion settles by what the alias says.
"""

from __future__ import annotations

import getpass
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from contracts import places
from contracts.errors import RegistryError
from contracts.registry import CHALLENGER, CHAMPION
from pipelines import quarantine, registry

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

EXPERIMENT: Final = "stride/history"
_TAG: Final = "stride.history."
_MOST_REASON: Final = 400  # characters; MLflow's tags hold 8,000

Action = Literal["promote", "refuse", "rollback", "challenge", "dismiss"]
State = Literal["done", "pending", "abandoned"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One thing that happened to a model."""

    id: str
    """Of the MLflow run that is the entry."""
    model: str
    action: Action
    from_version: str | None
    """The champion before, or the challenger for `challenge` and `dismiss`; None where there was none."""
    to_version: str | None
    """The champion after, or the challenger; None for a refusal and for `dismiss`."""
    run_id: str
    """The training run of the candidate."""
    reasons: tuple[str, ...]
    at: str
    """UTC, ISO 8601."""
    user: str
    state: State
    """`pending`: begun and not finished, by a process that still runs or that died; `abandoned`: it died, and the
    alias had not moved."""
    note: str = ""
    quarantined: str = ""
    """Why a service that tried `to_version` refuses it; empty where none does."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def history(model: str | None = None) -> list[Entry]:
    """The entries of a model (of every model without a name), newest first.

    Raises:
        RegistryError: the tracking server is away.
    """
    client = registry.connect()
    entries = read(client, model)
    refused = quarantine.versions(client)
    marked = [
        replace(entry, quarantined=refused[key].reason)
        if (key := (entry.model, entry.to_version or "")) in refused
        else entry
        for entry in entries
    ]
    return [_explained(client, entry) if entry.state == "pending" else entry for entry in marked]


def read(client: MlflowClient, model: str | None = None) -> list[Entry]:
    """As `history`, with a client at hand and without a look at the alias."""
    wanted = f"tags.`{_TAG}model` = '{model}'" if model else ""
    with registry.registry_errors("to read the history"):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return []
        found: list[Run] = []
        token: str | None = None
        while True:
            page = client.search_runs(
                [experiment.experiment_id], wanted, order_by=["attributes.start_time DESC"], page_token=token
            )
            found += page
            if not (token := page.token):
                return [_entry(run) for run in found]


def begin(
    client: MlflowClient,
    *,
    model: str,
    action: Action,
    from_version: str | None,
    to_version: str | None,
    run_id: str,
    reasons: Sequence[str],
) -> Entry:
    """Write down what is about to happen; the entry is pending until `finish`."""
    kept = [reason[:_MOST_REASON] for reason in reasons[:12]]
    tags = {
        "model": model,
        "action": action,
        "from": from_version or "",
        "to": to_version or "",
        "run_id": run_id,
        "reasons": json.dumps(kept, ensure_ascii=False),
        "user": _user(),
    }
    newest = read(client, model)[:1]
    # Entries of one model are ordered by their time alone, so two within a millisecond are kept apart.
    now = max([int(time.time() * 1000), *(_milliseconds(entry.at) + 1 for entry in newest)])
    versions = f"{from_version or 'none'} → {to_version or 'none'}"
    with registry.registry_errors("to write the history"):
        run = client.create_run(
            _experiment(client),
            start_time=now,
            tags={f"{_TAG}{key}": value for key, value in tags.items()} | {"mlflow.user": tags["user"]},
            run_name=f"{model}: {action} {versions}",
        )
    return _entry(run)


def finish(client: MlflowClient, entry: Entry, *, note: str = "", moved: bool = True) -> Entry:
    """Close an entry: what it says has happened or, without `moved`, did not."""
    with registry.registry_errors("to write the history"):
        if note:
            client.set_tag(entry.id, f"{_TAG}note", note)
        client.set_terminated(entry.id, status="FINISHED" if moved else "KILLED")
    return replace(entry, state="done" if moved else "abandoned", note=note or entry.note)


def settle(client: MlflowClient, model: str, *, complete: Callable[[Entry], None] = lambda _: None) -> list[Entry]:
    """Close what a crash left open, by what the alias says now; call it with the model's lock held.

    Args:
        client: Of the tracking server.
        model: Whose entries are closed.
        complete: Does what else belongs to an entry whose alias has moved; where it raises, the entry stays open, so
            that the next call does it.

    Returns:
        the entries that were closed, newest first.
    """
    settled = []
    for entry in read(client, model):
        if entry.state == "pending":
            moved = _moved(client, entry)
            what = "had moved" if moved else _unmoved(client, entry)
            note = f"interrupted before it was closed; the alias {what}"
            if moved:
                complete(entry)
            settled.append(finish(client, entry, note=note, moved=moved))
    return settled


def champions(entries: Sequence[Entry]) -> set[str]:
    """Every version that has been the champion."""
    return {entry.to_version for entry in entries if entry.to_version is not None and _made_champion(entry)}


def former_champions(entries: Sequence[Entry], current: str) -> list[str]:
    """The versions that a rollback from `current` can go back to, the latest first.

    A promotion puts a version on a stack and a rollback takes versions off it, so repeated rollbacks walk further back.
    """
    stack: list[str] = []
    for entry in reversed(entries):
        if entry.to_version is None or not _made_champion(entry):
            continue
        if entry.action == "rollback":
            while stack and stack[-1] != entry.to_version:
                stack.pop()
        if not stack or stack[-1] != entry.to_version:
            stack.append(entry.to_version)
    if stack and stack[-1] == current:
        stack.pop()
    # An alias that was moved by hand stands on no stack; the last champion that Stride knows is its former one.
    return [version for version in reversed(stack) if version != current]


def _made_champion(entry: Entry) -> bool:
    return entry.state == "done" and entry.action in ("promote", "rollback")


def _moved(client: MlflowClient, entry: Entry) -> bool:
    """Whether what an entry says has happened, by the alias that it is about."""
    if entry.action == "refuse":
        return True
    about = CHALLENGER if entry.action in ("challenge", "dismiss") else CHAMPION
    found = registry.aliased(client, entry.model, about)
    return (found.version if found else None) == entry.to_version


def _unmoved(client: MlflowClient, entry: Entry) -> str:
    """How far an entry came whose alias is not where it was to go."""
    gone = entry.action == "challenge" and entry.from_version is not None
    if gone and registry.aliased(client, entry.model, CHALLENGER) is None:
        return f"had been taken from version {entry.from_version} and not been given to another"
    return "had not moved"


def _explained(client: MlflowClient, entry: Entry) -> Entry:
    what = "the alias has moved" if _moved(client, entry) else "the alias has not moved"
    return replace(entry, note=f"not closed: it is under way, or was interrupted; {what}")


def _experiment(client: MlflowClient) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        embedded = places.tracking_uri().startswith("sqlite:")
        # A server chooses its own place; embedded, MLflow would take a directory of the current directory.
        location = str(places.home() / "artifacts" / "history") if embedded else None
        try:
            return str(client.create_experiment(EXPERIMENT, location))
        except MlflowException as error:  # another process was first
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(EXPERIMENT)
    if found is None or found.lifecycle_stage != "active":
        raise RegistryError(f"experiment '{EXPERIMENT}' was deleted; bring it back with `mlflow experiments restore`.")
    return str(found.experiment_id)


def _entry(run: Run) -> Entry:
    tags = {key.removeprefix(_TAG): value for key, value in run.data.tags.items() if key.startswith(_TAG)}
    states: dict[str, State] = {"FINISHED": "done", "RUNNING": "pending"}
    return Entry(
        id=run.info.run_id,
        model=tags["model"],
        action=cast("Action", tags["action"]),
        from_version=tags["from"] or None,
        to_version=tags["to"] or None,
        run_id=tags["run_id"],
        reasons=tuple(json.loads(tags["reasons"])),
        at=datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="milliseconds"),
        user=tags["user"],
        state=states.get(run.info.status, "abandoned"),
        note=tags.get("note", ""),
    )


def _milliseconds(at: str) -> int:
    return round(datetime.fromisoformat(at).timestamp() * 1000)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's numeric user has no name
        return "unknown"
