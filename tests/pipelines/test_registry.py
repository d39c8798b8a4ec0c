from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from contracts import bundle as bundles
from contracts.bundle import Bundle
from contracts.errors import BundleError, RegistryError
from contracts.registry import BUNDLE_DIGEST, BUNDLE_URI, CHAMPION
from pipelines import golden, registry
from pipelines.export import export
from services.training.data.dataset import Dataset

pytestmark = pytest.mark.usefixtures("quick_export")


@pytest.fixture
def exported(make_run: Any, digits: Dataset) -> Bundle:
    return export(make_run("good"), dataset=digits)


def _run(bundle: Bundle) -> str:
    return bundle.manifest.provenance.run_id


def test_a_version_names_its_bundle_and_is_no_champion_yet(exported: Bundle) -> None:
    version = registry.register(exported, _run(exported))

    client = registry.connect()
    tags = client.get_model_version("tiny", version.version).tags
    assert tags[BUNDLE_URI] == f"runs:/{_run(exported)}/bundle"
    assert tags[BUNDLE_DIGEST] == exported.digest
    assert registry.champion(client, "tiny") is None


def test_the_registered_model_is_an_onnx_model_that_mlflow_can_run(exported: Bundle) -> None:
    version = registry.register(exported, _run(exported))

    path = registry.connect().get_model_version_download_uri("tiny", version.version)
    golden.answer_golden(exported, (Path(path) / "model.onnx").read_bytes())
    model = mlflow.pyfunc.load_model(path)
    answer = model.predict({"images": np.zeros((2, 8, 8, 1), np.uint8)})["probabilities"]
    assert answer.shape == (2, 10)


def test_registering_twice_makes_one_version(exported: Bundle) -> None:
    first = registry.register(exported, _run(exported))

    assert registry.register(exported, _run(exported)) == first


def test_a_bundle_that_was_changed_on_disk_is_not_registered(exported: Bundle) -> None:
    model = exported.path / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"\0")

    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        registry.register(exported, _run(exported))
    assert registry.versions_of_run(registry.connect(), _run(exported)) == []


def test_a_bundle_that_was_changed_in_the_artifact_store_is_not_registered(exported: Bundle) -> None:
    registry.connect().log_text(_run(exported), "changed", "bundle/model.onnx")

    with pytest.raises(BundleError, match=r"model\.onnx was changed"):
        registry.register(exported, _run(exported))
    assert registry.versions_of_run(registry.connect(), _run(exported)) == []


def test_a_consistent_bundle_whose_graph_answers_otherwise_is_not_registered(
    exported: Bundle, graphs: Any, exported_graphs: dict[int, bytes]
) -> None:
    manifest = exported.manifest
    files = {name: exported.read(name) for name in manifest.files}
    files["model.onnx"] = exported_graphs[id(graphs["useless"])]
    forged = bundles.write(exported.path, manifest, files)
    registry.connect().log_artifacts(_run(exported), str(forged.path), "bundle")

    with pytest.raises(BundleError, match="golden images are answered off by"):
        registry.register(forged, _run(exported))


def test_a_version_without_a_bundle_is_not_read_back(exported: Bundle, tmp_path: Path) -> None:
    client = registry.connect()
    client.create_registered_model("tiny")
    client.create_model_version("tiny", source=f"runs:/{_run(exported)}/nothing", run_id=_run(exported))
    client.set_registered_model_alias("tiny", CHAMPION, "1")

    found = registry.champion(client, "tiny")

    assert found is not None
    assert found.digest is None
    with pytest.raises(BundleError, match="its tags name no bundle"):
        registry.read_back(client, found, tmp_path)


def test_a_manifest_that_is_not_the_registered_one_is_not_believed(exported: Bundle) -> None:
    version = registry.register(exported, _run(exported))
    client = registry.connect()
    better = exported.manifest.model_copy(update={"metrics": {"test/accuracy": 0.0}})
    client.log_text(_run(exported), better.to_bytes().decode(), "bundle/bundle.json")

    with pytest.raises(BundleError, match="was changed: sha256"):
        registry.fetch_manifest(client, version)


def test_a_version_that_is_not_there_is_told(embedded_tracking: str) -> None:
    with pytest.raises(RegistryError, match="tiny version 7: the registry holds no such version"):
        registry.get_version(registry.connect(), "tiny", "7")


def test_a_server_that_is_away_is_told(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")

    with pytest.raises(RegistryError, match="no answer"):
        registry.connect()
