"""A run in MLflow: opened for a recipe, written to while it runs, closed with the status that it deserves.

    with open_run(recipe, tags={"stride.device": "cpu"}) as run:
        run.dataset(dataset)
        run.epoch(1, {"train/loss": 0.31, "validation/loss": 0.28})

Embedded (SQLite), the artifacts of an experiment are plain files under $STRIDE_HOME/artifacts/<model_name>, so that a
client of the data base and a client of the local server both reach them; otherwise the server says where they go.
"""

from __future__ import annotations

import getpass
import json
import logging
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypeVar

from contracts import places
from contracts.errors import RegistryError, StrideError
from contracts.recipe import Recipe
from services.training.code_version import code_version as this_code
from services.training.dataset_entity import dataset_entity
from services.training.mlflow_client import connect, redact, registry_errors
from services.training.parameters import flatten
from services.training.system_metrics import SystemMetrics

if TYPE_CHECKING:
    import mlflow.entities
    import numpy as np
    from matplotlib.figure import Figure
    from mlflow.tracking import MlflowClient
    from numpy.typing import NDArray

    from services.training.data.dataset import Dataset

RECIPE: Final = "stride.recipe"
RECIPE_HASH: Final = "stride.recipe_hash"
DATA_FINGERPRINT: Final = "stride.data_fingerprint"
TEST_FINGERPRINT: Final = "stride.test_fingerprint"
CODE_VERSION: Final = "stride.code_version"
ERROR: Final = "error"
NOTE: Final = "mlflow.note.content"

_MAX_TAG: Final = 8000
_MAX_TAGS_OR_PARAMETERS: Final = 100
_MAX_METRICS: Final = 1000

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Run:
    """An open run. Every method raises RegistryError where the server or its storage does not take what it is given."""

    def __init__(self, client: MlflowClient, info: mlflow.entities.RunInfo, recipe: Recipe, uri: str) -> None:
        self.run_id: str = info.run_id
        self.experiment_id: str = info.experiment_id
        self.name: str = info.run_name
        self._client, self._recipe, self._uri = client, recipe, uri
        self._tables: list[str] = []

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one epoch's metrics, in one request; epochs count from 1."""
        self.metrics(metrics, step)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics (any number, not finite ones too); without a step they are the run's results."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.log_metrics([Metric(key, float(value), now, step or 0) for key, value in values.items()])

    def log_metrics(self, metrics: Sequence[mlflow.entities.Metric]) -> None:
        """Log metrics that bring their own time and step; may be called from another thread."""
        with self._errors("to log metrics"):
            for batch in _batches(metrics, _MAX_METRICS):
                self._client.log_batch(self.run_id, metrics=batch)

    def parameters(self, values: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        with self._errors("to log parameters"):
            for batch in _batches([Param(*item) for item in values.items()], _MAX_TAGS_OR_PARAMETERS):
                self._client.log_batch(self.run_id, params=batch)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; MLflow holds 8,000 characters of each, what is longer is cut."""
        from mlflow.entities import RunTag

        tags = [RunTag(key, str(value)[:_MAX_TAG]) for key, value in values.items()]
        with self._errors("to set tags"):
            for batch in _batches(tags, _MAX_TAGS_OR_PARAMETERS):
                self._client.log_batch(self.run_id, tags=batch)

    def dataset(self, dataset: Dataset) -> None:
        """Record which images the run saw: name, digest, source, counts and shapes; the images stay where they are."""
        from mlflow.entities import DatasetInput, InputTag

        entity = dataset_entity(dataset, self._recipe)
        context = InputTag("mlflow.data.context", "training")
        with self._errors("to log the data set"):
            self._client.log_inputs(self.run_id, [DatasetInput(entity, [context])])
        self.tags({DATA_FINGERPRINT: dataset.fingerprint, TEST_FINGERPRINT: dataset.test_fingerprint})

    def file(self, path: str, data: bytes | str) -> None:
        """Write an artifact; `path` is relative, with slashes."""
        target = PurePosixPath(path)
        folder = None if target.parent == PurePosixPath() else str(target.parent)
        with tempfile.TemporaryDirectory() as directory, self._errors(f"to write {path}"):
            local = Path(directory) / target.name
            local.write_bytes(data.encode() if isinstance(data, str) else data)
            self._client.log_artifact(self.run_id, str(local), folder)

    def image(self, key: str, step: int, image: NDArray[np.uint8]) -> None:
        """Add an image, uint8 (height, width, 3), to the series `key`; may be called from another thread.

        MLflow's image grid shows runs side by side where keys and steps are the same, and a slider over the steps.
        """
        with self._errors(f"to write the image {key!r} of step {step}"):
            self._client.log_image(self.run_id, image, key=key, step=step)

    def figure(self, path: str, figure: Figure, *, key: str | None = None) -> None:
        """Write a matplotlib figure as the PNG `path`; with a key, also as the one image of that series.

        MLflow's compare view shows image series of several runs side by side, but no PNG among the artifacts.
        """
        from services.training.drawing import to_pixels, to_png

        png = to_png(figure)
        self.file(path, png)
        if key is not None:
            self.image(key, 0, to_pixels(png))

    def table(self, path: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Write columns of equal length as the JSON table `path`, which the UI compares across runs."""
        rows = list(zip(*columns.values(), strict=True))
        self.file(path, json.dumps({"columns": list(columns), "data": rows}, ensure_ascii=False))
        if path not in self._tables:
            self._tables.append(path)
        tables = [{"path": table, "type": "table"} for table in self._tables]
        self.tags({"mlflow.loggedArtifacts": json.dumps(tables)})

    def note(self, markdown: str) -> None:
        """Set the text that opens the run's page; what a tag cannot hold is cut at a line."""
        if len(markdown) > _MAX_TAG:
            tail = "\n\n… (cut here; the whole text is among the artifacts)"
            markdown = markdown[: _MAX_TAG - len(tail)].rpartition("\n")[0] + tail
        self.tags({NOTE: markdown})

    def close(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        with self._errors(f"to close run {self.run_id}"):
            self._client.set_terminated(self.run_id, status)

    def _errors(self, doing: str) -> Any:
        return registry_errors(self._uri, doing)


@contextmanager
def open_run(recipe: Recipe, *, tags: Mapping[str, str]) -> Iterator[Run]:
    """Open a run in the experiment `recipe.model_name`, with the whole recipe as parameters and system metrics on.

    It ends FINISHED; FAILED with the tag `error` where the block raises; KILLED on Ctrl-C and exit. What the block
    raises is raised on.

    Args:
        recipe: What is fitted.
        tags: Added to recipe, recipe hash, code version, user and source; they win over those.

    Raises:
        RegistryError: no tracking server, or it refuses.
    """
    uri = places.tracking_uri()
    client = connect(uri)
    run = _create(client, uri, recipe, tags)
    system = SystemMetrics(run.log_metrics)
    try:
        run.parameters(flatten(recipe))
        system.start()
        yield run
    except BaseException as error:
        system.stop()
        _close_after(error, run, uri)
        raise
    system.stop()
    run.close("FINISHED")


def find_finished(recipe: Recipe, *, data_fingerprint: str, code_version: str) -> str | None:
    """The id of the newest finished run of the same recipe, data and code; None where there is none.

    Raises:
        RegistryError: no tracking server.
    """
    uri = places.tracking_uri()
    client = connect(uri)
    identity = {RECIPE_HASH: recipe.digest(), DATA_FINGERPRINT: data_fingerprint, CODE_VERSION: code_version}
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
            raise RegistryError(f"run {run_id!r}: tracking at {redact(uri)} has no such run; {advice}.") from error


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
    values = {key: str(value)[:_MAX_TAG] for key, value in given.items()}
    with registry_errors(uri, "to open a run"):
        created = client.create_run(_experiment(client, uri, recipe.model_name), tags=values, run_name=name)
    return Run(client, created.info, recipe, uri)


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
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


def _close_after(error: BaseException, run: Run, uri: str) -> None:
    """Close a run whose block raised; what goes wrong here must not hide `error`."""
    message = error.message if isinstance(error, StrideError) else f"{type(error).__name__}: {error}"
    try:
        connect(uri)  # tells within seconds that the server is away, where closing would try again for long
        run.tags({ERROR: message})
        run.close("FAILED" if isinstance(error, Exception) else "KILLED")
    except RegistryError as problem:
        _log.warning("run %s stays open in MLflow: %s", run.run_id, problem)


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = list(items)
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user id has no name
        return "unknown"
