"""Journals whose runs have ended, or were killed, before the tracking server had all of them: found, and sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from contracts import places
from contracts.errors import RegistryError, StrideError
from services.training import journal
from services.training.journal import Journal
from services.training.journal_entry import Entry
from services.training.journal_lock import Busy
from services.training.journal_replay import send_next, send_refused
from services.training.mlflow_client import connect, redact, registry_errors

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

State = Literal["sent", "open", "in use", "refused", "kept", "discarded"]

_log = logging.getLogger(__name__)


def _silent(_: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What a journal on this disk holds."""

    run_id: str
    name: str = ""
    tracking: str = ""
    """Where the run was opened."""
    status: str | None = None
    """That the run ended with; None where it goes on, or was killed."""
    unsent: int = 0
    """Entries that the server has not taken."""
    refused: int = 0
    """Entries that it will not take."""
    bytes: int = 0
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def waits(self) -> bool:
        """Whether there is anything that MLflow does not have: not so for a run that was killed when all was sent."""
        return self.unsent > 0 or self.refused > 0 or self.status is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Synced:
    """What came of one journal."""

    run_id: str
    name: str
    state: State
    """sent: MLflow has all of it, the run is closed, the journal gone; open: MLflow has all of it, and the run, which
    was interrupted, can go on; in use: a fit or another `stride sync` has it; refused: MLflow refuses some of it;
    kept: the server takes nothing; discarded: as was asked."""
    sent: int = 0
    """Entries that were taken now."""
    left: int = 0
    """Entries that are still here."""
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def kept() -> list[Kept]:
    """Every journal on this disk, those of runs that go on at this moment too, in the order of their ids."""
    return [_look(path) for path in journal.directories()]


def sync(*, say: Callable[[str], None] = _silent) -> list[Synced]:
    """Send every journal; may run beside fits and beside itself.

    A server that is away is no error: it is the problem of every journal that stays. Where there is no journal, no
    server is asked.
    """
    found = kept()
    if not found:
        return []
    uri = places.tracking_uri()
    try:
        client = connect(uri)
    except RegistryError as error:
        return [
            Synced(run_id=one.run_id, name=one.name, state="kept", left=one.unsent + one.refused, problem=error.message)
            for one in found
            if one.waits
        ]
    return [_sync(client, uri, one, say) for one in found]


def sync_finished(client: MlflowClient, uri: str, tags: Mapping[str, str]) -> None:
    """Send the journals of runs that have FINISHED here and carry these tags; what stays is warned of."""
    for one in kept():
        if one.status == "FINISHED" and tags.items() <= one.tags.items():
            result = _sync(client, uri, one, _silent)
            if result.state not in ("sent", "in use"):
                _log.warning("run %s has finished here and is not in MLflow: %s", one.run_id, result.problem)


def discard(run_id: str) -> Synced:
    """Give up what a journal holds.

    Raises:
        RegistryError: there is none of that run, or it is in use.
    """
    try:
        with Journal.open(run_id, create=False) as opened:
            one = _look(opened.path)
            opened.delete()
    except FileNotFoundError as error:
        advice = "`stride sync` lists those that there are"
        raise RegistryError(f"run {run_id!r}: {journal.root()} holds no journal of it; {advice}.") from error
    return Synced(run_id=run_id, name=one.name, state="discarded", left=one.unsent + one.refused)


def _sync(client: MlflowClient, uri: str, one: Kept, say: Callable[[str], None]) -> Synced:
    """Send one journal; whatever goes wrong is in the result."""
    try:
        with Journal.open(one.run_id, create=False, wait_s=0.5) as opened:
            return _sync_open(client, uri, opened, one, say)
    except FileNotFoundError:  # another one has sent it in the meantime
        return Synced(run_id=one.run_id, name=one.name, state="sent")
    except StrideError as error:
        state: State = "in use" if isinstance(error, Busy) else "kept"
        return Synced(
            run_id=one.run_id, name=one.name, state=state, left=one.unsent + one.refused, problem=error.message
        )


def _sync_open(client: MlflowClient, uri: str, opened: Journal, one: Kept, say: Callable[[str], None]) -> Synced:
    state: State = "kept"
    before, problem = _left(opened), None
    try:
        with registry_errors(uri, f"to send the journal of run {one.run_id}"):
            there = _send_all(client, uri, opened, one, say)
    except StrideError as error:
        problem = error.message
    else:
        if opened.refused:
            state, problem = "refused", f"MLflow refuses it: {next(iter(opened.refused.values()))}"
        else:
            # A fit that was killed and then given up has ended in MLflow alone.
            state = "open" if there == "RUNNING" and _status(list(opened.entries())) is None else "sent"
    left = _left(opened)
    if state == "sent":
        opened.delete()
    return Synced(run_id=one.run_id, name=one.name, state=state, sent=before - left, left=left, problem=problem)


def _left(opened: Journal) -> int:
    return opened.last - opened.acknowledged + len(opened.refused)


def _send_all(client: MlflowClient, uri: str, opened: Journal, one: Kept, say: Callable[[str], None]) -> str:
    """Send what is left; the status that the run had in MLflow before."""
    from mlflow.exceptions import MlflowException

    try:
        there: str = client.get_run(opened.run_id).info.status
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise RegistryError(
            f"run {opened.run_id}: tracking at {redact(uri)} has no such run, it was opened at {one.tracking}; set "
            f"MLFLOW_TRACKING_URI to that server, or give it up with `stride sync --discard {opened.run_id}`."
        ) from error
    if left := _left(opened):
        say(f"run {opened.run_id}: {left} entries to send")
    send_refused(client, opened)
    while not opened.drained:
        send_next(client, opened)
    return there


def _look(path: Path) -> Kept:
    """What a journal holds, without taking it from whoever has it open."""
    entries, acknowledged, refused = journal.peek(path)
    opened = next((entry.content for entry in entries if entry.kind == "open"), {})
    tags = dict(opened.get("tags", {}))
    for entry in entries:
        if entry.kind == "tags":
            tags |= entry.content["values"]
    return Kept(
        run_id=path.name,
        name=opened.get("name", ""),
        tracking=opened.get("tracking", ""),
        status=_status(entries),
        unsent=sum(entry.sequence > acknowledged for entry in entries),
        refused=len(refused),
        bytes=journal.size(path),
        tags=tags,
    )


def _status(entries: Iterable[Entry]) -> str | None:
    """What the run ended with; None where the last word is that it goes on."""
    words = [entry.content["status"] for entry in entries if entry.kind == "status"]
    return words[-1] if words and words[-1] != "RUNNING" else None
