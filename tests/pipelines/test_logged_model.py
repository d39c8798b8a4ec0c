from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines import logged_model, registry
from pipelines.export import export
from services.training.data.dataset import Dataset


@pytest.mark.usefixtures("quick_export")
def test_the_model_is_of_its_run_and_lies_in_its_experiment(
    make_run: Any, digits: Dataset, home: Path, tmp_path: Path
) -> None:
    bundle = export(make_run("good"), dataset=digits)
    client = registry.connect()
    run = client.get_run(bundle.manifest.provenance.run_id)

    model_id = logged_model.log(client, bundle, run.info.run_id, tmp_path)

    (logged,) = client.search_logged_models([run.info.experiment_id])
    assert logged.model_id == model_id
    assert logged.source_run_id == run.info.run_id
    assert logged.artifact_location.startswith(str(home / "artifacts"))
    assert (Path(logged.artifact_location) / "model.onnx").read_bytes() == bundle.read("model.onnx")
