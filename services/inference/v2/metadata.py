"""What the server and its models say of themselves.

A model's inputs and outputs are those of its graph, so that a client that fills every input it finds is answered. What
may be sent or asked for instead stands beside them, in `parameters`.
"""

from __future__ import annotations

from typing import Any, Final

from services.inference.model import Model

IMAGES: Final = "images"
IMAGE: Final = "image"
PROBABILITIES: Final = "probabilities"
LABELS: Final = "labels"
API_VERSION: Final = "1"


def server() -> dict[str, Any]:
    return {"name": "stride", "version": API_VERSION, "extensions": ["binary_tensor_data", "classification"]}


def model(served: Model, versions: list[str]) -> dict[str, Any]:
    return {
        "name": served.name,
        "versions": versions,
        "platform": "onnxruntime_onnx",
        "inputs": [tensor(IMAGES, "UINT8", -1, *served.spec.shape)],
        "outputs": [tensor(PROBABILITIES, "FP32", -1, len(served.labels))],
        "parameters": {
            "alternative_inputs": [tensor(IMAGE, "BYTES", -1)],
            "optional_outputs": [tensor(LABELS, "BYTES", -1)],
            "labels": list(served.labels),
        },
    }


def tensor(name: str, datatype: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape)}
