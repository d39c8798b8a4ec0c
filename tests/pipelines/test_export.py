from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import bundle as bundles
from contracts.errors import BundleError, DataError, RegistryError
from contracts.images import decode
from pipelines import graph, registry
from pipelines.export import export, golden_images
from pipelines.golden import answer_golden
from services.training.data.dataset import Dataset, Split

pytestmark = pytest.mark.usefixtures("quick_export")


def test_a_run_becomes_a_verified_bundle_with_its_provenance(make_run: Any, digits: Dataset, home: Path) -> None:
    run_id = make_run("good")

    bundle = export(run_id, dataset=digits)

    assert bundle.path == home / "bundles" / run_id
    assert bundles.read(bundle.path).digest == bundle.digest
    manifest = bundle.manifest
    assert manifest.labels == digits.labels
    assert manifest.provenance.run_id == run_id
    assert manifest.provenance.test_fingerprint == digits.test_fingerprint
    assert set(manifest.provenance.versions) == {"python", "torch", "onnx", "onnxruntime"}
    assert manifest.metrics["test/accuracy"] > 0.85
    assert manifest.parity["images"] == len(digits.test.images)
    assert manifest.parity["largest_difference"] <= manifest.tolerance


def test_the_bundle_in_the_runs_artifacts_is_the_one_on_disk(make_run: Any, digits: Dataset, tmp_path: Path) -> None:
    run_id = make_run("good")
    bundle = export(run_id, dataset=digits, output=tmp_path / "mine")

    stored = registry.fetch(registry.connect(), run_id, tmp_path, digest=bundle.digest)

    assert stored.manifest == bundle.manifest


def test_a_bundle_tells_how_its_test_images_were_answered(make_run: Any, digits: Dataset) -> None:
    bundle = export(make_run("good"), dataset=digits)

    answers = graph.predict(graph.open_session(bundle.read("model.onnx")), digits.test.images, batch_size=64)
    found = bundle.manifest.reference

    assert found is not None
    assert found.classes == tuple(np.bincount(answers.argmax(axis=1), minlength=10))
    assert sum(found.confidence) == len(digits.test.images)


def test_golden_images_decode_to_test_images_and_are_answered_again(make_run: Any, digits: Dataset) -> None:
    bundle = export(make_run("good"), dataset=digits)

    answer_golden(bundle)

    assert len(bundle.manifest.golden) == 4
    for golden in bundle.manifest.golden:
        image = decode(bundle.read(golden.file), bundle.manifest.input)
        (index,) = np.flatnonzero((digits.test.images == image).all(axis=(1, 2, 3)))[:1]
        assert int(np.argmax(golden.probabilities)) == digits.test.labels[index]


def test_golden_images_are_found_for_a_model_that_is_never_right(make_run: Any, digits: Dataset) -> None:
    bundle = export(make_run("good"), dataset=digits)
    session = graph.open_session(bundle.read("model.onnx"))
    answers = graph.predict(session, digits.test.images, batch_size=64)
    wrong = Split(images=digits.test.images, labels=(answers.argmax(axis=1) + 1) % 10)

    golden, files = golden_images(session, wrong, answers, tolerance=1e-4)

    assert len(golden) == len(files) == 1


def test_the_metrics_are_those_of_the_onnx_graph(make_run: Any, digits: Dataset) -> None:
    run_id = make_run("good")
    bundle = export(run_id, dataset=digits)
    session = graph.open_session(bundle.read("model.onnx"))

    right = graph.predict(session, digits.test.images, batch_size=50).argmax(axis=1) == digits.test.labels

    assert bundle.manifest.metrics["test/accuracy"] == pytest.approx(right.mean())
    logged = registry.connect().get_run(run_id).data.metrics
    assert logged["onnx/test/accuracy"] == bundle.manifest.metrics["test/accuracy"]
    assert logged["parity/images"] == len(digits.test.images)


def test_a_second_export_gives_the_same_bundle_back(make_run: Any, digits: Dataset, tmp_path: Path) -> None:
    run_id = make_run("good")
    first = export(run_id, dataset=digits)

    again = export(run_id, output=tmp_path / "elsewhere")

    assert again.digest == first.digest
    assert again.path == tmp_path / "elsewhere"


@pytest.mark.parametrize("exported_before", [True, False])
def test_a_directory_of_other_things_is_never_replaced(
    make_run: Any, digits: Dataset, tmp_path: Path, *, exported_before: bool
) -> None:
    run_id = make_run("good")
    if exported_before:
        export(run_id, dataset=digits)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"the only copy")

    with pytest.raises(BundleError, match=r"photos: it is no bundle"):
        export(run_id, dataset=digits, output=tmp_path / "photos")

    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"the only copy"


def test_an_interrupted_export_is_made_anew(make_run: Any, digits: Dataset) -> None:
    run_id = make_run("good")
    registry.connect().log_text(run_id, "half a graph", "bundle/model.onnx")
    registry.connect().log_text(run_id, "old", "bundle/golden-9.png")

    bundle = export(run_id, dataset=digits)

    assert "golden-9.png" not in bundle.manifest.files
    assert export(run_id).digest == bundle.digest


def test_a_changed_bundle_that_a_version_points_at_is_not_written_over(make_run: Any, digits: Dataset) -> None:
    run_id = make_run("good")
    registry.register(export(run_id, dataset=digits), run_id)
    registry.connect().log_text(run_id, "changed", "bundle/model.onnx")

    with pytest.raises(BundleError, match=r"tiny version 1: .*model\.onnx was changed"):
        export(run_id, dataset=digits)


def test_other_test_images_than_the_runs_are_refused(make_run: Any, digits: Dataset) -> None:
    run_id = make_run("good")
    other = Dataset(
        name="digits",
        labels=digits.labels,
        train=digits.train,
        validation=digits.validation,
        test=digits.validation,
        fingerprint=digits.fingerprint,
        test_fingerprint="0" * 64,
        skipped=(),
        overlap=0,
    )

    with pytest.raises(DataError, match="its test images have the fingerprint"):
        export(run_id, dataset=other)


def test_an_unknown_run_is_refused_by_name(embedded_tracking: str) -> None:
    with pytest.raises(RegistryError, match=r"run 'f00df00d.*has no such run"):
        export("f00d" * 8)
