"""A run in MLflow: opened for a recipe, written to while it runs, closed with the status that it deserves.

    with open_run(recipe, tags={"stride.device": "cpu"}) as run:
        run.dataset(dataset)
        run.epoch(1, {"train/loss": 0.31, "validation/loss": 0.28})

The server is needed to open a run, and never waited for again before its end (see `services.training.journal`).

Embedded (SQLite), the artifacts of an experiment are plain files under $STRIDE_HOME/artifacts/<model_name>, so that a
client of the data base and a client of the local server both reach them; otherwise the server says where they go.
"""

from __future__ import annotations

import getpass
import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from contracts import places
from contracts.errors import RecipeError, RegistryError, StrideError
from contracts.recipe import Recipe
from services.training import journal_sync
from services.training.code_version import code_version as this_code
from services.training.journal import Journal
from services.training.journal_sender import Sender
from services.training.mlflow_client import connect, redact, registry_errors
from services.training.parameters import flatten
from services.training.run import DATA_FINGERPRINT, ERROR, MAX_TAG, Run
from services.training.system_metrics import SystemMetrics

if TYPE_CHECKING:
    import mlflow.entities
    from mlflow.tracking import MlflowClient

RECIPE: Final = "stride.recipe"
RECIPE_HASH: Final = "stride.recipe_hash"
CODE_VERSION: Final = "stride.code_version"

_WAIT_S: Final = 60.0
"""How long a run's end waits for the server, where STRIDE_TRACKING_WAIT says nothing."""
_WAIT_KILLED_S: Final = 5.0
"""The same for one that was told to stop: who tells it, ends it soon."""
_WAIT_LOCK_S: Final = 10.0

_log = logging.getLogger(__name__)


class RunNotFound(RegistryError):
    """Tracking has no run of that id."""


class NotResumable(RegistryError):
    """A run that cannot go on: it is gone, finished, or of another recipe."""


@contextmanager
def open_run(recipe: Recipe, *, tags: Mapping[str, str], resume: str | None = None) -> Iterator[Run]:
    """Open a run in the experiment `recipe.model_name`, with the whole recipe as parameters and system metrics on.

    It ends FINISHED; FAILED with the tag `error` where the block raises; KILLED on Ctrl-C and exit. What the block
    raises is raised on. Where the server is away at the end, STRIDE_TRACKING_WAIT seconds (60) are waited for it; what
    it has not taken by then is kept, and a warning says how it gets there: `run.tracked` is False then.

    Args:
        recipe: What is fitted.
        tags: Added to recipe, recipe hash, code version, user and source; they win over those.
        resume: The id of an unfinished run of this recipe, which goes on: it is RUNNING again, and the metrics that
            were logged before are not logged again.

    Raises:
        NotResumable: the run to resume is gone, finished, or of another recipe.
        RegistryError: no tracking server, or it refuses.
        FitError: the disk does not take the run's journal.
        RecipeError: STRIDE_TRACKING_WAIT is no number of seconds.
    """
    wait_s = _wait_s()
    uri = places.tracking_uri()
    client = connect(uri)
    run, age_s = (
        (_create(client, uri, recipe, tags), 0.0) if resume is None else _reopen(client, uri, recipe, tags, resume)
    )
    _announce(run.run_id)
    system = SystemMetrics(run.log_metrics, run_seconds=age_s)
    try:
        run.parameters(flatten(recipe))
        system.start()
        yield run
    except BaseException as error:
        system.stop()
        _end_after(error, run, wait_s)
        raise
    system.stop()
    run.end("FINISHED", wait_s=wait_s)


def _announce(run_id: str) -> None:
    """Tell whoever waits for it, the training service say, by a line of the file that STRIDE_RUNS_FILE names."""
    if path := os.environ.get("STRIDE_RUNS_FILE"):
        try:
            with Path(path).open("a") as file:
                file.write(f"{run_id}\n")
        except OSError as error:  # the fit is worth more than the news of it
            _log.warning("run %s is not announced in STRIDE_RUNS_FILE '%s': %s", run_id, path, error.strerror)


def find_finished(
    recipe: Recipe, *, data_fingerprint: str, code_version: str, tags: Mapping[str, str] | None = None
) -> str | None:
    """The id of the newest finished run of the same recipe, data and code, and with these tags; None without one.

    One that ended here while the server was away is sent there first.

    Raises:
        RegistryError: no tracking server.
    """
    uri = places.tracking_uri()
    client = connect(uri)
    identity = {RECIPE_HASH: recipe.digest(), DATA_FINGERPRINT: data_fingerprint, CODE_VERSION: code_version}
    identity |= {key: value for key, value in (tags or {}).items() if key.startswith("stride.")}
    journal_sync.sync_finished(client, uri, identity)
    wanted = [f"tags.`{key}` = '{value}'" for key, value in identity.items()]
    with registry_errors(uri, "to look for a finished run"):
        experiment = client.get_experiment_by_name(recipe.model_name)
        if experiment is None:
            return None
        query = " and ".join(["attributes.status = 'FINISHED'", *wanted])
        order = ["attributes.start_time DESC"]
        runs = client.search_runs([experiment.experiment_id], query, max_results=1, order_by=order)
    return runs[0].info.run_id if runs else None


def get_run(run_id: str) -> mlflow.entities.Run:
    """A run as MLflow has it.

    Raises:
        RegistryError: no tracking server, or no such run.
    """
    from mlflow.exceptions import MlflowException

    uri = places.tracking_uri()
    client = connect(uri)
    with registry_errors(uri, f"to read run {run_id}"):
        try:
            return client.get_run(run_id)
        except MlflowException as error:
            # An id that cannot be one (`../x`) is an invalid parameter, not a missing resource.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            advice = "`stride history` and the MLflow page list the runs"
            raise RunNotFound(f"run {run_id!r}: tracking at {redact(uri)} has no such run; {advice}.") from error


def tracking_uri() -> str:
    """Where runs are; the one that every function of this module uses."""
    return places.tracking_uri()


def _create(client: MlflowClient, uri: str, recipe: Recipe, tags: Mapping[str, str]) -> Run:
    name = f"{recipe.name}-{secrets.token_hex(3)}"
    given = {
        "mlflow.user": _user(),
        "mlflow.source.name": Path(sys.argv[0]).name or "stride",
        "mlflow.source.type": "LOCAL",
        RECIPE: recipe.name,
        RECIPE_HASH: recipe.digest(),
        CODE_VERSION: this_code(),
        **tags,
    }
    values = {key: str(value)[:MAX_TAG] for key, value in given.items()}
    with registry_errors(uri, "to open a run"):
        info = client.create_run(experiment_id(client, uri, recipe.model_name), tags=values, run_name=name).info
    try:
        journal = Journal.open(info.run_id)
        journal.append("open", _opened(info, uri, values))
    except StrideError:
        with registry_errors(uri, "to close a run that has no journal"):
            client.set_terminated(info.run_id, "FAILED")
        raise
    return Run(info, recipe, journal, Sender(client, uri, journal))


def _reopen(client: MlflowClient, uri: str, recipe: Recipe, tags: Mapping[str, str], run_id: str) -> tuple[Run, float]:
    """The run, RUNNING again, and how many seconds ago it began."""
    try:
        found = get_run(run_id)
    except RunNotFound as error:
        raise NotResumable(error.message) from error
    at = redact(uri)
    # What was killed may have left children that hold the journal for some seconds.
    journal = Journal.open(run_id, wait_s=_WAIT_LOCK_S)
    try:
        found = get_run(run_id)  # once more: whoever had the journal may have sent it in the meantime
        entries = list(journal.entries())
        ended = [entry.content["status"] for entry in entries if entry.kind == "status"]
        if found.info.lifecycle_stage != "active":
            raise NotResumable(f"run {run_id} at {at} was deleted, an open one was expected; fit again with --force.")
        if "FINISHED" in (found.info.status, *ended[-1:]):
            raise NotResumable(f"run {run_id} at {at} is FINISHED, an unfinished one was expected; fit with --force.")
        if (digest := found.data.tags.get(RECIPE_HASH)) != recipe.digest():
            raise NotResumable(
                f"run {run_id} at {at} is of recipe {digest}, {recipe.digest()} was expected; fit again with --force."
            )
        if not entries:
            journal.append("open", _opened(found.info, uri, found.data.tags))
        now = int(time.time() * 1000)
        # Behind what an earlier end may have left in the journal, and at once.
        journal.append("status", {"status": "RUNNING", "at": now})
        journal.append("tags", {"values": {ERROR: None, **{key: str(value)[:MAX_TAG] for key, value in tags.items()}}})
        with registry_errors(uri, f"to reopen run {run_id}"):
            client.update_run(run_id, status="RUNNING")
    except BaseException:
        journal.close()
        raise
    logged = {metric.key: metric.step for metric in found.data.to_proto().metrics}
    for entry in entries:
        for key, _, _, step in entry.content["metrics"] if entry.kind == "metrics" else ():
            logged[key] = max(step, logged.get(key, 0))
    run = Run(found.info, recipe, journal, Sender(client, uri, journal), logged=logged)
    return run, (now - found.info.start_time) / 1000


def _opened(info: mlflow.entities.RunInfo, uri: str, tags: Mapping[str, str]) -> dict[str, object]:
    """What the journal says of its run to who finds it."""
    return {
        "run_id": info.run_id,
        "experiment_id": info.experiment_id,
        "name": info.run_name,
        "tracking": redact(uri),
        "tags": {key: value for key, value in tags.items() if key.startswith("stride.")},
    }


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment's id; created where there is none, also when another process does the same in this moment."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = str(places.home() / "artifacts" / name) if uri.startswith("sqlite:") else None
        try:
            return str(client.create_experiment(name, location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        advice = "restore it with `mlflow experiments restore`, or give the recipe another model_name"
        raise RegistryError(f"experiment '{name}' at {redact(uri)} was deleted, a run needs an active one; {advice}.")
    return str(found.experiment_id)


def _end_after(error: BaseException, run: Run, wait_s: float) -> None:
    """End a run whose block raised; what goes wrong here must not hide `error`."""
    message = error.message if isinstance(error, StrideError) else f"{type(error).__name__}: {error}"
    failed = isinstance(error, Exception)
    try:
        try:
            run.tags({ERROR: message})
        finally:
            run.end("FAILED" if failed else "KILLED", wait_s=wait_s if failed else min(wait_s, _WAIT_KILLED_S))
    except StrideError as problem:
        _log.warning("run %s stays open in MLflow: %s", run.run_id, problem)


def _wait_s() -> float:
    text = os.environ.get("STRIDE_TRACKING_WAIT") or str(_WAIT_S)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise RecipeError(f"STRIDE_TRACKING_WAIT is {text!r}; set it to a number of seconds, 0 or more.")
    return value


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        return "unknown"
