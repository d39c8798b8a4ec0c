"""An open run, as a fit writes to it: everything goes to the run's journal on this disk, and from there to MLflow.

No method waits for the tracking server; a fit goes on as fast as it does where none is asked, and loses nothing.
"""

from __future__ import annotations

import json
import logging
import math
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, TypeVar

from contracts.errors import RegistryError
from contracts.recipe import Recipe
from services.training.dataset_entity import dataset_entity
from services.training.journal import Journal
from services.training.journal_flusher import Flusher
from services.training.journal_replay import MAX_METRICS, MAX_PARAMETERS, MAX_TAGS
from services.training.journal_sender import Sender

if TYPE_CHECKING:
    import mlflow.entities
    import numpy as np
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from services.training.data.dataset import Dataset

DATA_FINGERPRINT: Final = "stride.data_fingerprint"
TEST_FINGERPRINT: Final = "stride.test_fingerprint"
ERROR: Final = "error"
NOTE: Final = "mlflow.note.content"

MAX_TAG: Final = 8000
"""Characters that MLflow holds of a tag."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Run:
    """An open run. Every method raises FitError where this machine's disk does not take what it is given."""

    def __init__(
        self,
        info: mlflow.entities.RunInfo,
        recipe: Recipe,
        journal: Journal,
        sender: Sender,
        *,
        logged: Mapping[str, int] | None = None,
    ) -> None:
        """Of an open journal.

        Args:
            info: Of the run, from the server.
            recipe: What is fitted.
            journal: Where all goes.
            sender: Of that journal; it is started, and ended by `end`.
            logged: Of a resumed run, the last step of each metric: what was logged before is not logged again.
        """
        self.run_id: str = info.run_id
        self.experiment_id: str = info.experiment_id
        self.name: str = info.run_name
        self.tracked = False
        """Whether MLflow holds all of it; known when the run has ended."""
        self._started: int = info.start_time
        self._recipe, self._journal, self._sender, self._logged = recipe, journal, sender, dict(logged or {})
        self._tables: list[str] = []
        self._flusher = Flusher(journal)
        self._flusher.start()
        sender.start()

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one epoch's metrics; epochs count from 1. An epoch that a resumed run repeats is in MLflow once."""
        self.metrics(metrics, step)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics (any number, not finite ones too); without a step they are the run's results."""
        now, at = int(time.time() * 1000), step or 0
        self._metrics([(key, float(value), now, at) for key, value in values.items() if at > self._logged.get(key, -1)])

    def log_metrics(self, metrics: Sequence[mlflow.entities.Metric]) -> None:
        """Log metrics that bring their own time and step; may be called from another thread."""
        self._metrics([(metric.key, float(metric.value), metric.timestamp, metric.step) for metric in metrics])

    def parameters(self, values: Mapping[str, str]) -> None:
        for batch in _batches(values.items(), MAX_PARAMETERS):
            self._append("parameters", {"values": dict(batch)})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; MLflow holds 8,000 characters of each, what is longer is cut."""
        for batch in _batches(values.items(), MAX_TAGS):
            self._append("tags", {"values": {key: str(value)[:MAX_TAG] for key, value in batch}})

    def dataset(self, dataset: Dataset) -> None:
        """Record which images the run saw: name, digest, source, counts and shapes; the images stay where they are."""
        entity = dataset_entity(dataset, self._recipe)
        self._append("inputs", {"dataset": entity.to_dictionary(), "tags": {"mlflow.data.context": "training"}})
        self.tags({DATA_FINGERPRINT: dataset.fingerprint, TEST_FINGERPRINT: dataset.test_fingerprint})

    def file(self, path: str, data: bytes | str) -> None:
        """Write an artifact; `path` is relative, with slashes (RegistryError where it leads out of the run)."""
        target = PurePosixPath(path)
        if target.is_absolute() or not target.name or ".." in target.parts:
            raise RegistryError(
                f"run {self.run_id}: to write {path!r} is refused, a path inside of the run was expected; give one "
                "without a leading slash and without '..'."
            )
        spool = self._journal.spool(target.name, data.encode() if isinstance(data, str) else data)
        self._append("artifact", {"path": str(target), "spool": spool})

    def image(self, key: str, step: int, image: NDArray[np.uint8]) -> None:
        """Add an image, uint8 (height, width, 3), to the series `key`; may be called from another thread.

        MLflow's image grid shows runs side by side where keys and steps are the same, and a slider over the steps.
        """
        if not re.fullmatch(r"[a-zA-Z0-9_\-./ ]+", key):
            raise RegistryError(
                f"run {self.run_id}: an image series {key!r} is refused, letters, digits, blanks and _-./ were "
                "expected; give it another key."
            )
        # The name that MLflow's page reads, but the same one each time: a step that is repeated overwrites itself.
        unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{self.run_id}/{key}/{step}")
        path = f"images/{key.replace('/', '~')}+step+{step}+timestamp+{self._started}+{unique}"
        # Pixels as they are: to make a PNG takes longer than a step, and is left to the thread that sends.
        spool = self._journal.spool("pixels", image.tobytes())
        self._append("image", {"path": path, "shape": image.shape, "spool": spool})

    def figure(self, path: str, figure: Figure, *, key: str | None = None) -> None:
        """Write a matplotlib figure as the PNG `path`; with a key, also as the one image of that series. It is emptied.

        MLflow's compare view shows image series of several runs side by side, but no PNG among the artifacts.
        """
        from services.training.drawing import release, to_pixels, to_png

        png = to_png(figure)
        release(figure)
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
        if len(markdown) > MAX_TAG:
            tail = "\n\n… (cut here; the whole text is among the artifacts)"
            markdown = markdown[: MAX_TAG - len(tail)].rpartition("\n")[0] + tail
        self.tags({NOTE: markdown})

    def end(self, status: str, *, wait_s: float) -> None:
        """End the run as FINISHED, FAILED or KILLED, and wait until MLflow has all of it; called once.

        Args:
            status: Of the run.
            wait_s: How long to wait. What MLflow has not taken by then is kept, `tracked` is False, and a warning says
                how it gets there.

        Raises:
            RegistryError: MLflow refuses something for good; all the rest is there, and the run stays open.
        """
        closed = False
        try:
            self._append("status", {"status": status, "at": int(time.time() * 1000)})
            closed = True
            self._sender.drain(wait_s)
        finally:
            self._sender.stop()
            self._flusher.stop()
            self._leave(status, wait_s, closed=closed)
        if self._journal.refused:
            first = next(iter(self._journal.refused.values()))
            raise RegistryError(
                f"run {self.run_id}: MLflow refuses {len(self._journal.refused)} of the entries of its journal "
                f"({first}), they were expected to be taken; they are kept in {self._journal.path}, `stride sync` "
                f"sends them once more and `stride sync --discard {self.run_id}` gives them up."
            )

    def _leave(self, status: str, wait_s: float, *, closed: bool) -> None:
        """Close the journal; one that MLflow has all of is deleted, but for that of a run that could not be closed."""
        journal = self._journal
        self.tracked = closed and journal.drained and not journal.refused
        if self.tracked:
            journal.delete()
            return
        journal.close()
        if not journal.drained:
            _log.warning(
                "run %s: tracking has not taken %d of %d entries within %g s (%s); they are kept in %s, and `stride "
                "sync` sends them and closes the run as %s",
                self.run_id,
                journal.last - journal.acknowledged,
                journal.last,
                wait_s,
                self._sender.problem or "it is slow",
                journal.path,
                status,
            )

    def _metrics(self, points: list[tuple[str, float, int, int]]) -> None:
        # JSON has no NaN and no infinities.
        rows = [(key, value if math.isfinite(value) else repr(value), at, step) for key, value, at, step in points]
        for batch in _batches(rows, MAX_METRICS):
            self._append("metrics", {"metrics": batch})

    def _append(self, kind: str, content: Mapping[str, Any]) -> None:
        self._journal.append(kind, content)
        self._flusher.wake()
        self._sender.wake()


def _batches(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    rest = list(items)
    for start in range(0, len(rest), size):
        yield rest[start : start + size]
