"""A bundle's graph as an MLflow model of its run: what MLflow's pages show of a version, and its `mlflow.onnx` loads.

It is what mlflow.onnx.log_model does, step by step: that function takes the tracking server from a setting of the whole
process, which it also exports to the environment, and puts the model into the default experiment.
"""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from contracts import images
from contracts.bundle import INPUT, MODEL, OUTPUT, Bundle

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

NAME: Final = "model"
"""The name of the MLflow model of a run, beside its bundle."""


def log(client: MlflowClient, bundle: Bundle, run_id: str, directory: Path) -> str:
    """Log the graph of a bundle as an MLflow model of its run.

    Args:
        client: Of the tracking server that holds the run.
        bundle: Verified, with a golden image at least: it is the model's example.
        run_id: Of the run that fitted it.
        directory: Where the model's files are staged; the caller removes it.

    Returns:
        The id of the logged model.
    """
    import onnx
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    with warnings.catch_warnings():
        # MLflow warns of a type hint of its own when this module is first imported.
        warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
        importlib.import_module("mlflow.pyfunc.model")
    import mlflow.onnx
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    manifest = bundle.manifest
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *manifest.input.shape), INPUT)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, len(manifest.labels)), OUTPUT)]),
    )
    example = images.decode(bundle.read(manifest.golden[0].file), manifest.input)
    experiment_id = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment_id, name=NAME, source_run_id=run_id)
    model_id = str(logged.model_id)
    path = directory / "mlflow-model"
    mlflow.onnx.save_model(
        onnx.load_model_from_string(bundle.read(MODEL)),
        str(path),
        mlflow_model=Model(
            artifact_path=logged.artifact_location, model_uuid=model_id, run_id=run_id, model_id=model_id
        ),
        signature=signature,
        input_example={INPUT: example[np.newaxis]},
        pip_requirements=["onnx", "onnxruntime"],  # not inferred: that starts a process and takes seconds
        save_as_external_data=False,
    )
    client.log_model_artifacts(model_id, str(path))
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return model_id
