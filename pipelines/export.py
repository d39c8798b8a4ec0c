"""From a finished run to a bundle: ONNX, checked, proved equal to its network, with golden images and provenance.

A second export gives the same bundle back: versions in the registry pin it by digest, and a served model must not
change under its version. Until there is a version, `stride tune` may put a faster graph into it.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from contracts import bundle as bundles
from contracts import images, places
from contracts.bundle import MODEL, Bundle, Golden, Manifest, Provenance
from contracts.errors import BundleError, DataError
from contracts.registry import BUNDLE_ARTIFACT
from pipelines import graph, parity, registry
from pipelines.parity import Parity
from pipelines.reference import reference

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from onnxruntime.capi.onnxruntime_inference_collection import InferenceSession

    from services.training.data.dataset import Dataset, Split
    from services.training.runs import TrainedRun

GOLDEN_IMAGES: Final = 4

Say = Callable[[str], None]


def silent(_: str) -> None:
    """A `say` that says nothing."""


def export(run_id: str, *, output: Path | None = None, dataset: Dataset | None = None, say: Say = silent) -> Bundle:
    """Export a finished run: prove its graph on the whole test split, and log the bundle as the run's `bundle/`.

    Args:
        run_id: A finished run of `services.training.train`.
        output: Where the bundle is written; `$STRIDE_HOME/bundles/<run_id>` without it.
        dataset: The run's data, where they are loaded already.
        say: Gets a line for each stage.

    Returns:
        The bundle at `output`. Where the run has been exported before, it is the one that was logged then.

    Raises:
        ExportError: torch cannot write the network as ONNX, or onnxruntime does not answer as torch does.
        DataError: the data are gone, or their test images are no longer those of the run.
        BundleError: the run's bundle is registered as a version and was changed since, or something else than a
            bundle stands at `output`.
        RegistryError: no such finished run, or the tracking server is away.
    """
    output = output.resolve() if output else places.home() / "bundles" / run_id
    bundles.check_free(output)
    client = registry.connect()
    if (logged := _logged(client, run_id, output)) is not None:
        say(f"bundle {logged.digest[:12]} of run {run_id} was exported before")
        return logged
    from services.training.data import load
    from services.training.runs import load_run

    run = load_run(run_id)
    dataset = dataset or load(run.recipe.data)
    check_data(run, dataset)
    bundle = make_bundle(run, dataset.test, output=output, say=say)
    log_bundle(client, run_id, bundle)
    return bundle


def log_bundle(client: MlflowClient, run_id: str, bundle: Bundle) -> None:
    """Make `bundle` the one that the run holds; the one before it, or what is left of one, is taken away.

    Raises:
        RegistryError: the tracking server is away; the next export makes the bundle anew.
    """
    with registry.registry_errors(f"to log the bundle of run {run_id}"):
        if client.list_artifacts(run_id, BUNDLE_ARTIFACT):
            store = registry.artifacts(client.get_run(run_id).info.artifact_uri)
            store.delete_artifacts(BUNDLE_ARTIFACT)  # type: ignore[no-untyped-call]
        client.log_artifacts(run_id, str(bundle.path), BUNDLE_ARTIFACT)
        _log_metrics(client, run_id, bundle)


def check_data(run: TrainedRun, dataset: Dataset) -> None:
    """Refuse data whose labels or test images are not those that the run was fitted and tested on.

    Raises:
        DataError: they differ.
    """
    if dataset.labels != run.labels:
        raise DataError(
            f"run {run.run_id}: its labels are {list(run.labels)}, those of the data set now {list(dataset.labels)}; "
            "bring the same data back, or train again."
        )
    if dataset.test_fingerprint != run.test_fingerprint:
        raise DataError(
            f"run {run.run_id}: its test images have the fingerprint {run.test_fingerprint[:12]}…, those of data set "
            f"{dataset.name!r} now {dataset.test_fingerprint[:12]}…; bring the same images back, or train again."
        )


def make_bundle(run: TrainedRun, test: Split, *, output: Path, say: Say = silent) -> Bundle:
    """Export, prove and write; MLflow is not touched.

    Raises:
        ExportError: see `export`.
        OSError: `output` cannot be written.
    """
    recipe = run.recipe
    say(f"exporting run {run.run_id} to ONNX opset {recipe.export.opset}")
    model = graph.to_onnx(run.graph, image=recipe.data.image, opset=recipe.export.opset)
    session = graph.open_session(model)
    say(f"comparing torch and onnxruntime on {len(test.images):,} test images")
    proof, probabilities = parity.compare(
        run.graph,
        session,
        test.images,
        test.labels,
        tolerance=recipe.export.tolerance,
        batch_sizes=recipe.export.batch_sizes,
    )
    seen, allowed = f"{proof.largest_difference:.2g}", f"{proof.tolerance:.2g}"
    say(f"equal within {seen} (tolerance {allowed}), test accuracy {proof.accuracy_onnx:.4f}")
    golden, files = golden_images(session, test, probabilities, tolerance=recipe.export.tolerance)
    manifest = Manifest(
        name=recipe.model_name,
        labels=run.labels,
        input=recipe.data.image,
        tolerance=recipe.export.tolerance,
        metrics={
            "test/accuracy": proof.accuracy_onnx,
            "test/loss": proof.loss_onnx,
            "test/macro_f1": parity.macro_f1(probabilities, test.labels),
            "test/majority_baseline": parity.majority_baseline(test.labels),  # the gate wants more than that
        },
        parity=_figures(proof),
        provenance=_provenance(run),
        golden=golden,
        reference=reference(probabilities),
        files={},
    )
    return bundles.write(output, manifest, {MODEL: model, **files})


def golden_images(
    session: InferenceSession, test: Split, probabilities: NDArray[np.float32], *, tolerance: float
) -> tuple[tuple[Golden, ...], dict[str, bytes]]:
    """Up to `GOLDEN_IMAGES` test images of different classes with onnxruntime's answers, and their PNG files.

    Of each class the rightly answered image with the clearest answer is taken; a model that answers none rightly gets
    its clearest answers instead, since a server must be able to verify it all the same.
    """
    best = np.sort(probabilities, axis=1)
    margin = best[:, -1] - best[:, -2]
    right = (probabilities.argmax(axis=1) == test.labels) & (margin > 10 * tolerance)
    # Right answers first, then by margin; the stable sort makes the choice the same every time.
    order = np.lexsort((-margin, ~right))
    chosen: dict[int, int] = {}
    for index in order.tolist():
        if len(chosen) < GOLDEN_IMAGES and (right[index] or not chosen):
            chosen.setdefault(int(test.labels[index]), index)
    golden, files = [], {}
    for number, index in enumerate(chosen.values()):
        name = f"golden-{number}.png"
        (answer,) = graph.predict(session, test.images[index : index + 1], batch_size=1)
        golden.append(Golden(file=name, probabilities=tuple(float(value) for value in answer)))
        files[name] = images.encode_png(test.images[index])
    return tuple(golden), files


def _logged(client: MlflowClient, run_id: str, output: Path) -> Bundle | None:
    """The bundle that the run holds, copied to `output`; the remains of an interrupted export are taken away."""
    from services.training.tracking import get_run

    run = get_run(run_id)
    with registry.registry_errors(f"to read run {run_id}"):
        if not client.list_artifacts(run_id, BUNDLE_ARTIFACT):
            return None
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=output.parent) as directory:
            found = registry.fetch(client, run_id, Path(directory))
            bundles.replace_directory(found.path, output)
        return bundles.read(output)
    except BundleError as error:
        if pinned := registry.versions_of_run(client, run_id):
            raise BundleError(
                f"{pinned[0].who}: the bundle that it points at is broken ({error.message}); train again with --force."
            ) from error
    with registry.registry_errors(f"to remove the incomplete bundle of run {run_id}"):
        registry.artifacts(run.info.artifact_uri).delete_artifacts(BUNDLE_ARTIFACT)  # type: ignore[no-untyped-call]
    return None


def _provenance(run: TrainedRun) -> Provenance:
    import onnx
    import onnxruntime
    import torch

    return Provenance(
        run_id=run.run_id,
        recipe=run.recipe.name,
        recipe_hash=run.recipe.digest(),
        data_fingerprint=run.data_fingerprint,
        test_fingerprint=run.test_fingerprint,
        code_version=run.code_version,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "onnx": str(onnx.__version__),
            "onnxruntime": str(onnxruntime.__version__),
        },
    )


def _figures(proof: Parity) -> dict[str, float]:
    sizes = {
        f"images_at_batch_{size}": float(count) for size, count in zip(proof.batch_sizes, proof.compared, strict=True)
    }
    return {**proof.figures(), **sizes}


def _log_metrics(client: MlflowClient, run_id: str, bundle: Bundle) -> None:
    from mlflow.entities import Metric

    manifest = bundle.manifest
    now = int(datetime.now(UTC).timestamp() * 1000)
    values = {
        **{f"onnx/{key}": value for key, value in manifest.metrics.items()},
        "onnx/bytes": float(manifest.files[MODEL].bytes),
        "parity/images": manifest.parity["images"],
        "parity/largest_difference": manifest.parity["largest_difference"],
        "parity/near_ties": manifest.parity["near_ties"],
    }
    client.log_batch(run_id, metrics=[Metric(key, value, now, 0) for key, value in values.items()])
