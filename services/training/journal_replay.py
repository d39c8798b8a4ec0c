"""A journal's entries, sent to MLflow in order, and so that sending one twice leaves what sending it once does.

MLflow keeps a metric's (key, time, step, value) once, and entries bring their own time; tags, parameters, status and
the data set are set to what they are; files overwrite themselves, and a picture's name is decided when it is logged.

| kind | content |
|---|---|
| open | run_id, experiment_id, name, recipe, tracking (address, without password), tags |
| metrics | metrics: [[key, value, time in ms, step], …]; a value that is not finite is a string |
| parameters, tags | values: {key: value}; a tag whose value is null is deleted |
| inputs | dataset: {name, digest, source_type, source, schema, profile}, tags |
| artifact | path, spool |
| image | path (without ending), shape, spool: uint8 pixels |
| status | status, at: time in ms |
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from services.training.journal import Journal
from services.training.journal_entry import Entry

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

MAX_METRICS: Final = 700
MAX_PARAMETERS: Final = 100
MAX_TAGS: Final = 100
"""What one request takes: 1,000 values together, 100 of these each."""
_LIMITS: Final = {"metrics": MAX_METRICS, "parameters": MAX_PARAMETERS, "tags": MAX_TAGS}
_ROUND_S: Final = 1.0
_REFUSED: Final = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST", "RESOURCE_ALREADY_EXISTS")

_log = logging.getLogger(__name__)


def send_next(client: MlflowClient, journal: Journal) -> int:
    """Send what comes next, for about a second; how many entries that were.

    What the server will never take (a metric whose name it does not allow) is set aside with a warning, and the rest
    goes on. Raises whatever says that it does not take anything now; what had arrived before is noted.
    """
    done: list[Entry] = []
    refused: dict[int, str] = {}
    started = time.monotonic()
    try:
        for group in _groups(journal.unsent()):
            refused |= _send_or_refuse(client, journal, group, incomplete=bool(journal.refused or refused))
            done += group
            if time.monotonic() > started + _ROUND_S:
                break
    finally:
        if done:
            journal.acknowledge(done, refused)
    return len(done)


def send_refused(client: MlflowClient, journal: Journal) -> None:
    """Send once more what was refused: another server, or another limit before it, may take it."""
    for entry in [entry for entry in journal.entries() if entry.sequence in journal.refused]:
        others = journal.refused.keys() - {entry.sequence}
        journal.acknowledge([entry], _send_or_refuse(client, journal, [entry], incomplete=bool(others)))


def _send_or_refuse(client: MlflowClient, journal: Journal, group: list[Entry], *, incomplete: bool) -> dict[int, str]:
    """Send entries in one request; the reasons for those that are refused for good, by sequence number.

    A run of which something was refused is `incomplete`, and not closed as FINISHED.
    """
    try:
        if incomplete and group[0].content.get("status") == "FINISHED":
            raise ValueError("the run is not complete")
        _send(client, journal, group)
    except Exception as error:
        reason = refusal(error)
        if reason is None:
            raise
        if len(group) > 1:  # one of them spoils the request
            each = [_send_or_refuse(client, journal, [entry], incomplete=incomplete) for entry in group]
            return {number: why for one in each for number, why in one.items()}
        (entry,) = group
        _log.warning("run %s: MLflow refuses %s: %s", journal.run_id, describe(entry), reason)
        return {entry.sequence: reason}
    return {}


def refusal(error: Exception) -> str | None:
    """Why the server will never take it; None where it may take it later (it is away, overloaded, or out of disk)."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
    if isinstance(error, MlflowException):
        return line if error.error_code in _REFUSED else None
    if isinstance(error, HTTPError) and error.response is not None:
        return line if error.response.status_code in (400, 413, 422) else None
    if isinstance(error, OSError | json.JSONDecodeError | UnicodeError):  # an answer that is no JSON is a proxy's
        return None
    # Ours (a spooled file that is damaged), or what MLflow's client says before it asks anybody.
    return line if isinstance(error, ValueError | TypeError) else None


def describe(entry: Entry) -> str:
    """What an entry holds, in a few words."""
    content = entry.content
    match entry.kind:
        case "metrics":
            return f"the metrics {_some(metric[0] for metric in content['metrics'])}"
        case "parameters" | "tags":
            return f"the {entry.kind} {_some(content['values'])}"
        case "artifact" | "image":
            return f"the file {content['path']}"
        case "inputs":
            return "the data set"
        case _:
            return f"the {entry.kind} {content.get('status', '')}".strip()


def _groups(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Neighbours that fit into one request."""
    group: list[Entry] = []
    room: dict[str, int] = {}
    for entry in entries:
        size = len(entry.content["metrics" if entry.kind == "metrics" else "values"]) if _joins(entry) else 0
        if group and (not _joins(entry) or not _joins(group[-1]) or size > room[entry.kind]):
            yield group
            group = []
        if not group:
            room = dict(_LIMITS)
        if _joins(entry):
            room[entry.kind] -= size
        group.append(entry)
    if group:
        yield group


def _joins(entry: Entry) -> bool:
    return entry.kind in _LIMITS and (entry.kind != "tags" or None not in entry.content["values"].values())


def _send(client: MlflowClient, journal: Journal, group: list[Entry]) -> None:
    """One request; all entries but metrics, parameters and tags come alone."""
    from mlflow.entities import Dataset as DatasetEntity
    from mlflow.entities import DatasetInput, InputTag

    run_id, entry = journal.run_id, group[0]
    content = entry.content
    if _joins(entry):
        _log_batch(client, run_id, group)
        return
    match entry.kind:
        case "open":
            pass  # the run has been opened; the entry is for who finds the journal
        case "tags":
            _delete_tags(client, run_id, content["values"])
        case "inputs":
            tags = [InputTag(*item) for item in content["tags"].items()]
            client.log_inputs(run_id, [DatasetInput(DatasetEntity(**content["dataset"]), tags)])
        case "artifact":
            folder = PurePosixPath(content["path"]).parent
            client.log_artifact(run_id, str(journal.spooled(entry)), None if folder == PurePosixPath() else str(folder))
        case "image":
            _log_image(client, run_id, content, journal.spooled(entry))
        case "status" if content["status"] == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        case "status":
            client.set_terminated(run_id, content["status"], end_time=content["at"])
        case _:
            raise ValueError(f"an entry of the unknown kind {entry.kind!r}")


def _log_batch(client: MlflowClient, run_id: str, group: list[Entry]) -> None:
    from mlflow.entities import Metric, Param, RunTag

    metrics = [
        Metric(key, float(value), at, step)
        for entry in group
        if entry.kind == "metrics"
        for key, value, at, step in entry.content["metrics"]
    ]
    values: dict[str, dict[str, str]] = {"parameters": {}, "tags": {}}
    for entry in group:
        if entry.kind in values:
            values[entry.kind] |= entry.content["values"]  # of a tag that is set twice the last one counts
    parameters = [Param(*item) for item in values["parameters"].items()]
    client.log_batch(run_id, metrics, parameters, [RunTag(*item) for item in values["tags"].items()])


def _delete_tags(client: MlflowClient, run_id: str, values: dict[str, str | None]) -> None:
    from mlflow.exceptions import MlflowException

    for key, value in values.items():
        if value is not None:
            client.set_tag(run_id, key, value)
            continue
        try:
            client.delete_tag(run_id, key)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or "No tag with name" not in str(error):
                raise


def _log_image(client: MlflowClient, run_id: str, content: dict[str, Any], pixels: Path) -> None:
    """As MLflow's own `log_image` does, which would give the picture another name every time."""
    import numpy as np
    from mlflow.tracking.multimedia import compress_image_size
    from PIL import Image

    path = PurePosixPath(content["path"])
    picture = Image.fromarray(np.frombuffer(pixels.read_bytes(), np.uint8).reshape(content["shape"]))
    with tempfile.TemporaryDirectory() as directory:
        large, small = Path(directory) / f"{path.name}.png", Path(directory) / f"{path.name}+compressed.webp"
        picture.save(large)
        compress_image_size(picture).save(small)
        for file in (large, small):
            client.log_artifact(run_id, str(file), str(path.parent))
    client.set_tag(run_id, "mlflow.loggedImages", "True")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
