"""The answer to a request to infer: JSON, with tensors in it or behind it."""

from __future__ import annotations

import json
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.inference.errors import InferenceFailed, InvalidTensor
from services.inference.model import Model
from services.inference.v2.metadata import LABELS, PROBABILITIES
from services.inference.v2.request import Output, Request

Probabilities = NDArray[np.float32]
_DEFAULT: Final = (Output(PROBABILITIES, None, None),)


def check(outputs: tuple[Output, ...], model: Model) -> None:
    """Refuse outputs that the model does not have, before anything is computed.

    Raises:
        InvalidTensor: an unknown output, one asked for twice, or classes of labels.
    """
    names = [output.name for output in outputs]
    for output in outputs:
        if output.name not in (PROBABILITIES, LABELS):
            known = f"ask for '{PROBABILITIES}' or '{LABELS}'"
            raise InvalidTensor(f"model {model.name!r} has no output {output.name!r}; {known}.")
        if output.name == LABELS and output.classification is not None:
            raise InvalidTensor(f"output '{LABELS}' has no classification; ask it of '{PROBABILITIES}'.")
        if names.count(output.name) > 1:
            raise InvalidTensor(f"output {output.name!r} is asked for twice; ask once.")


def write(request: Request, model: Model, probabilities: Probabilities) -> tuple[bytes, int | None]:
    """The body, and the length of the JSON in it where tensors follow; None where it is all JSON.

    Args:
        probabilities: float32, (n, classes).

    Raises:
        InferenceFailed: the model answered something that is not a number.
    """
    if not np.isfinite(probabilities).all():
        raise InferenceFailed(f"model {model.name!r} version {model.version} gave no number; look at its export.")
    described, behind = [], []
    for output in request.outputs or _DEFAULT:
        binary = request.binary if output.binary is None else output.binary
        text, tensor = _output(output, model, probabilities, binary=binary)
        described.append(text)
        if binary:
            behind.append(tensor)
    head = f'{{"model_name": {json.dumps(model.name)}, "model_version": {json.dumps(model.version)}, '
    if request.id is not None:
        head += f'"id": {json.dumps(request.id)}, '
    content = f'{head}"outputs": [{", ".join(described)}]}}'.encode()
    return (b"".join([content, *behind]), len(content)) if behind else (content, None)


def _output(output: Output, model: Model, probabilities: Probabilities, *, binary: bool) -> tuple[str, bytes]:
    """The description of an output, with its data unless it is binary, and then its bytes."""
    shape: tuple[int, ...] = probabilities.shape
    datatype = "FP32"
    if output.name == LABELS:
        texts = [model.labels[index] for index in probabilities.argmax(axis=1)]
        shape, datatype = (len(texts),), "BYTES"
    elif output.classification is not None:
        texts = _classes(model, probabilities, output.classification)
        shape, datatype = (len(probabilities), len(texts) // len(probabilities)), "BYTES"
    tensor, data = b"", ""
    if binary and datatype == "FP32":
        tensor = probabilities.astype("<f4", copy=False).tobytes()
    elif binary:
        tensor = b"".join(len(text).to_bytes(4, "little") + text for text in map(str.encode, texts))
    elif datatype == "FP32":
        # Nine digits give each float32 back to the last bit.
        data = ", ".join(f"{value:.9g}" for value in probabilities.ravel().tolist())
    else:
        data = ", ".join(map(json.dumps, texts))
    what = f'"parameters": {{"binary_data_size": {len(tensor)}}}' if binary else f'"data": [{data}]'
    return f'{{"name": "{output.name}", "datatype": "{datatype}", "shape": {list(shape)}, {what}}}', tensor


def _classes(model: Model, probabilities: Probabilities, count: int) -> list[str]:
    """The `count` most probable classes of each row, or all where there are fewer; ties go to the lower index."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return [
        f"{float(row[index]):.7g}:{index}:{model.labels[index]}"
        for row, indices in zip(probabilities, best.tolist(), strict=True)
        for index in indices
    ]
