"""The MLflow run that a fit is logged in: a new one, or the one that was open when the fit was cut off."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from contracts import places
from contracts.errors import RegistryError
from contracts.recipe import Recipe
from services.training.checkpoint_file import Snapshot
from services.training.checkpoints import Checkpoints
from services.training.mlflow_client import connect, registry_errors
from services.training.run import Run
from services.training.tracking import NotResumable, get_run, open_run

FIT: Final = "stride.fit"
"""The tag that a fit finds its run by, where it was killed before it could write down the run's id."""

_log = logging.getLogger(__name__)


@contextmanager
def open_fit_run(
    recipe: Recipe, *, tags: Mapping[str, str], kept: Checkpoints, resume: Snapshot | None
) -> Iterator[Run]:
    """Open the run of a fit; see `tracking.open_run` for how it ends.

    The fit's earlier run is opened again where there is one and it can go on; whatever it lacks of the epochs that are
    done is logged.

    Args:
        recipe: What is fitted.
        tags: Of the run.
        kept: The fit's checkpoints, which keep the run's id.
        resume: What the fit goes on from.

    Raises:
        RegistryError: no tracking server, or it refuses.
    """
    fit_id = kept.run.get("fit") or secrets.token_hex(16)
    before = _earlier(recipe, kept, resume)
    kept.keep_run(fit=fit_id)  # before the run is there: one that is killed in the next moment is found by its tag
    tags = {**tags, FIT: fit_id}
    with ExitStack() as stack:
        run = None
        if before is not None:
            try:
                run = stack.enter_context(open_run(recipe, tags=tags, resume=before))
            except NotResumable as error:
                _log.warning("the fit is logged in a new run, since its own cannot go on: %s", error.message)
        if run is None:
            run = stack.enter_context(open_run(recipe, tags=tags))
        kept.keep_run(run_id=run.run_id)
        for epoch, metrics in enumerate(resume.state["history"] if resume else (), start=1):
            run.epoch(epoch, metrics)  # what it has already is not logged twice
        yield run


def abandon(kept: Checkpoints) -> None:
    """Close the run of a fit that will not go on, if it was killed and still counts as running."""
    run_id = kept.run.get("run_id")
    if run_id is None:
        return
    uri = places.tracking_uri()
    try:
        if get_run(run_id).info.status == "RUNNING":
            with registry_errors(uri, f"to close run {run_id}"):
                connect(uri).set_terminated(run_id, "KILLED")
    except RegistryError as error:
        _log.warning("run %s stays open in MLflow: %s", run_id, error.message)


def _earlier(recipe: Recipe, kept: Checkpoints, resume: Snapshot | None) -> str | None:
    """The id of the run that the fit was logged in; None where there is none."""
    if resume is not None:
        run_id: str = resume.state["facts"]["run_id"]
        return run_id
    if "run_id" in kept.run or "fit" not in kept.run:
        return kept.run.get("run_id")
    uri = places.tracking_uri()
    client = connect(uri)
    with registry_errors(uri, "to look for an unfinished run"):
        experiment = client.get_experiment_by_name(recipe.model_name)
        if experiment is None:
            return None
        found = client.search_runs([experiment.experiment_id], f"tags.`{FIT}` = '{kept.run['fit']}'", max_results=1)
    return found[0].info.run_id if found else None
