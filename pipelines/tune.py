"""From a bundle to the one that is served: the fastest graph that keeps the accuracy, on this machine.

model.onnx stays in the bundle, proven equal to its network; what is served instead lies beside it, and the manifest
says why. The metrics of the manifest are always those of the graph that is served, so that the gate judges that one.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from contracts import bundle as bundles
from contracts import cpu, images
from contracts.bundle import MODEL, Bundle, Manifest, Serving
from contracts.errors import DataError, ExportError
from contracts.recipe import Tune
from pipelines import graph, parity, registry
from pipelines.candidates import Candidate
from pipelines.comparison import Found, Row
from pipelines.export import Say, export, log_bundle, silent
from pipelines.judging import load_recipe
from pipelines.model_lock import locked
from pipelines.reference import reference
from pipelines.search import Search

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from services.training.data.dataset import Dataset, Split

FILES: Final = {"fp32": MODEL, "int8": "model-int8.onnx", "fp16": "model-fp16.onnx"}
TOLERANCES: Final = {"int8": 0.02, "fp16": 0.01}
"""Of golden probabilities, from one machine to another: sums in another order end on another one of the few numbers."""
TABLE: Final = "tuning/tuning.json"
REPORT: Final = "tuning/tuning.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuning:
    """What became of it."""

    run_id: str
    bundle: Bundle
    """As the run holds it now."""
    written: bool
    """False where the bundle is a registered version's, which must not change."""
    note: str | None
    """Why it was not written."""
    serving: Serving
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        serving = self.serving.model_dump(mode="json", exclude={"golden"})
        return {
            "run_id": self.run_id,
            "digest": self.bundle.digest,
            "written": self.written,
            "note": self.note,
            "serving": serving,
            "candidates": [row.to_json() for row in self.rows],
        }


def tune(run_id: str, *, limits: Tune | None = None, dataset: Dataset | None = None, say: Say = silent) -> Tuning:
    """Choose the graph to serve for a finished run, and write it into the run's bundle and the table into the run.

    Args:
        run_id: A finished run; it is exported first where it has not been.
        limits: Of time, gain and loss; those of the run's recipe without them.
        dataset: The run's data, where they are loaded already.
        say: Gets a line for each stage.

    Raises:
        ExportError, BundleError: as `pipelines.export.export`.
        DataError: the data are gone or no longer those of the run, or there are no validation images.
        DeviceError: STRIDE_DEVICE asks for a device that is not there.
        RegistryError: no such finished run, or the tracking server is away.
    """
    from services.training.data import load
    from services.training.device import choose_device

    client = registry.connect()
    bundle = export(run_id, dataset=dataset, say=say)
    recipe = load_recipe(run_id)
    device, device_name, _ = choose_device()
    cuda = device == "cuda" and _runs_on_cuda(bundle, say)
    machine = f"{device_name if cuda else cpu.name()}, {graph.cores()} cores, {platform.system()}"
    dataset = dataset or load(recipe.data)
    _check_data(bundle.manifest, dataset)
    limits = limits or recipe.tune
    say(f"comparing graphs for run {run_id} on {machine}, timing them for about {limits.seconds:g} s")
    found = Search(
        bundle.read(MODEL),
        image=bundle.manifest.input,
        train=dataset.train,
        validation=dataset.validation,
        limits=limits,
        cuda=cuda,
    ).run()
    serving = _serving(found, bundle, cuda=cuda, machine=machine)
    say(f"{serving.file} is the choice: {serving.reason}")
    note = None
    with locked(bundle.manifest.name, say=say):  # no promotion may pin the bundle while it is replaced
        if pinned := registry.versions_of_run(client, run_id):
            note = (
                f"{pinned[0].who} is this bundle, and what a version serves must not change; fit its recipe again "
                "with --force to tune it"
            )
            say(note)
        else:
            bundle = _write(bundle, serving, found.chosen, dataset.test, cuda=cuda)
            log_bundle(client, run_id, bundle)
    tuning = Tuning(run_id=run_id, bundle=bundle, written=note is None, note=note, serving=serving, rows=found.rows)
    _record(client, tuning)
    return tuning


def _runs_on_cuda(bundle: Bundle, say: Say) -> bool:
    """Whether onnxruntime finds on CUDA what torch did: it brings libraries of its own."""
    try:
        graph.open_session(bundle.read(MODEL), cuda=True)
    except ExportError as error:
        say(f"comparing for the CPU, because model.onnx does not run on CUDA: {error.message}")
        return False
    return True


def _check_data(manifest: Manifest, dataset: Dataset) -> None:
    known = manifest.provenance
    for what, found, wanted in (
        ("test images", dataset.test_fingerprint, known.test_fingerprint),
        ("images", dataset.fingerprint, known.data_fingerprint),
    ):
        if found != wanted:
            raise DataError(
                f"run {known.run_id}: its {what} have the fingerprint {wanted[:12]}…, those of data set "
                f"{dataset.name!r} now {found[:12]}…; bring the same images back, or train again."
            )
    if not len(dataset.validation):
        raise DataError(
            f"data set {dataset.name!r} has no validation images to judge a faster graph by; set data.validation."
        )


def _serving(found: Found, bundle: Bundle, *, cuda: bool, machine: str) -> Serving:
    manifest, chosen = bundle.manifest, found.chosen
    session = graph.open_session(chosen.model, chosen.session, cuda=cuda)
    answers = [
        graph.predict(session, images.decode(bundle.read(golden.file), manifest.input)[np.newaxis], batch_size=1)[0]
        for golden in manifest.golden
    ]
    validation = {
        "images": float(found.images),
        "accuracy_before": found.before.accuracy,
        "accuracy_after": found.after.accuracy,
        "loss_before": found.before.loss,
        "loss_after": found.after.loss,
        "agreement": found.after.agreement,
        "difference": found.after.difference,
    }
    return Serving(
        file=FILES[chosen.precision],
        precision=chosen.precision,
        provider="CUDAExecutionProvider" if cuda else "CPUExecutionProvider",
        exact_int8=chosen.precision == "int8" and cpu.lacks_int8() is None,
        session=chosen.session,
        golden=tuple(tuple(float(value) for value in answer) for answer in answers),
        tolerance=TOLERANCES.get(chosen.precision, manifest.tolerance),
        reason=found.reason,
        gain=found.gain,
        validation=validation,
        machine=machine,
    )


def _write(bundle: Bundle, serving: Serving, chosen: Candidate, test: Split, *, cuda: bool) -> Bundle:
    """The bundle with the chosen graph, and with the metrics of that graph on the test images."""
    manifest = bundle.manifest
    changed: dict[str, Any] = {"serving": serving}
    # The export measured model.onnx on them already; another graph, or model.onnx after another one, is measured now.
    if serving.file != MODEL or manifest.served_file != MODEL:
        session = graph.open_session(chosen.model, chosen.session, cuda=cuda)
        answers = graph.predict(session, test.images, batch_size=64)
        metrics = {
            "test/accuracy": parity.accuracy(answers, test.labels),
            "test/loss": parity.loss(answers, test.labels),
            "test/macro_f1": parity.macro_f1(answers, test.labels),
        }
        changed |= {"metrics": {**manifest.metrics, **metrics}, "reference": reference(answers)}
        # What model.onnx did is kept for where it has to be served instead.
        changed["plain"] = None if serving.file == MODEL else manifest.measured(MODEL)
    kept = (MODEL, *(golden.file for golden in manifest.golden))
    files = {**{name: bundle.read(name) for name in kept}, serving.file: chosen.model}
    return bundles.write(bundle.path, manifest.model_copy(update=changed), files)


def _record(client: MlflowClient, tuning: Tuning) -> None:
    """The comparison into the run: for programs, for people, and its figures as metrics."""
    from mlflow.entities import Metric

    serving = tuning.serving
    values = {"gain": serving.gain, **serving.validation}
    now = int(time.time() * 1000)
    with registry.registry_errors(f"to log the tuning of run {tuning.run_id}"):
        client.log_text(tuning.run_id, json.dumps(tuning.to_json(), indent=2), TABLE)
        client.log_text(tuning.run_id, to_markdown(tuning), REPORT)
        client.log_batch(
            tuning.run_id, metrics=[Metric(f"tuning/{key}", value, now, 0) for key, value in values.items()]
        )


HEADER: Final = ("graph", "threads", "ms, 1 image", "ms/image in batch", "gain", "accuracy", "same class", "verdict")


def cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The rows as they are shown, in the order of `HEADER`."""
    return [
        (
            row.name,
            str(row.threads),
            _shown(row.milliseconds, ".4f"),
            _shown(row.milliseconds_in_batch, ".4f"),
            _shown(row.gain, ".0%"),
            _shown(row.accuracy, ".4f"),
            _shown(row.agreement, ".2%"),
            row.verdict,
        )
        for row in rows
    ]


def to_markdown(tuning: Tuning) -> str:
    lines = ["## Tuning", "", f"{tuning.serving.machine}: {tuning.serving.reason}.", ""]
    lines += [] if tuning.note is None else [f"**Not written:** {tuning.note}.", ""]
    lines += [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    lines += [f"| {' | '.join(row)} |" for row in cells(tuning.rows)]
    return "\n".join([*lines, ""])


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
