"""The section `serving` of a bundle: what is accepted, and that bundles without it stay as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from contracts import bundle as bundles
from contracts.bundle import Bundle, Golden, Manifest, Provenance, Serving, Session
from contracts.errors import BundleError
from contracts.image_spec import ImageSpec

FILES = {"model.onnx": b"fp32", "model-int8.onnx": b"int8", "golden-0.png": b"png"}


def serving(**changes: Any) -> Serving:
    content: dict[str, Any] = {
        "file": "model-int8.onnx",
        "precision": "int8",
        "provider": "CPUExecutionProvider",
        "golden": ((0.25, 0.75),),
        "tolerance": 0.02,
        "reason": "it is faster",
        "gain": 0.5,
        "machine": "a test",
    }
    return Serving.model_validate({**content, **changes})


def write(path: Path, tuned: Serving | None, files: dict[str, bytes] = FILES) -> Bundle:
    provenance = Provenance(
        run_id="1",
        recipe="r",
        recipe_hash="h",
        data_fingerprint="d",
        test_fingerprint="t",
        code_version="c",
        created_at="2026-01-01T00:00:00Z",
    )
    manifest = Manifest(
        name="pets",
        labels=("cat", "dog"),
        input=ImageSpec(height=2, width=2, channels=1),
        tolerance=1e-4,
        metrics={"test/accuracy": 0.9},
        provenance=provenance,
        golden=(Golden(file="golden-0.png", probabilities=(0.2, 0.8)),),
        serving=tuned,
        files={},
    )
    return bundles.write(path, manifest, files)


def test_a_tuned_bundle_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write(tmp_path / "b", serving(session=Session(threads=1, buckets=(1, 8, 64))))
    read = bundles.read(tmp_path / "b")
    assert read.manifest == written.manifest
    assert read.manifest.served_file == "model-int8.onnx"
    assert read.read("model-int8.onnx") == b"int8"


def test_a_bundle_that_was_never_tuned_serves_model_onnx(tmp_path: Path) -> None:
    files = {name: FILES[name] for name in ("model.onnx", "golden-0.png")}
    assert write(tmp_path / "b", None, files).manifest.served_file == "model.onnx"


def test_a_bundle_from_before_there_was_tuning_is_valid(tmp_path: Path) -> None:
    files = {name: FILES[name] for name in ("model.onnx", "golden-0.png")}
    path = write(tmp_path / "b", None, files).path / "bundle.json"
    path.write_text(path.read_text().replace('  "serving": null,\n', ""))
    assert "serving" not in path.read_text()
    assert bundles.read(tmp_path / "b").manifest.serving is None


def test_the_graph_that_is_served_must_be_in_the_bundle(tmp_path: Path) -> None:
    files = {name: FILES[name] for name in ("model.onnx", "golden-0.png")}
    with pytest.raises(BundleError, match=r"names no 'model-int8\.onnx'"):
        write(tmp_path / "b", serving(), files)


@pytest.mark.parametrize("golden", [(), ((0.1, 0.2, 0.7),), ((0.5, 0.5), (0.5, 0.5))])
def test_it_must_have_an_answer_of_its_own_for_every_golden_image(tmp_path: Path, golden: Any) -> None:
    with pytest.raises(BundleError, match="for 1 golden images and 2 labels"):
        write(tmp_path / "b", serving(golden=golden))


@pytest.mark.parametrize(
    "session",
    [{"threads": 0}, {"buckets": (8, 4)}, {"buckets": (4, 4)}, {"optimization": "none"}, {"graph_file": "/etc/passwd"}],
)
def test_options_that_a_server_does_not_know_are_refused(session: Any) -> None:
    with pytest.raises(ValidationError):
        serving(session=session)


def test_a_file_name_cannot_lead_out_of_the_bundle() -> None:
    with pytest.raises(ValidationError):
        serving(file="../model.onnx")
