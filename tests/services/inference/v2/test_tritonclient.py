"""The Open Inference Protocol with NVIDIA's client as it is published, against the real service."""

# mypy: allow-untyped-calls
# The client has no annotations.

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray

from contracts.images import encode_png

Images = Callable[[int], NDArray[np.uint8]]
LABELS = ("circle", "square", "triangle")


@pytest.fixture
def client(http: httpx.Client) -> Iterator[Any]:
    with triton.InferenceServerClient(f"{http.base_url.host}:{http.base_url.port}") as made:
        yield made


@pytest.fixture
def batch(make_image: Images) -> NDArray[np.uint8]:
    return np.stack([make_image(number) for number in range(5)])


def images(batch: NDArray[np.uint8], *, binary: bool = True) -> Any:
    given = triton.InferInput("images", list(batch.shape), "UINT8")
    given.set_data_from_numpy(batch, binary_data=binary)
    return given


def test_the_client_finds_the_server_and_the_model_alive_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("shapes")
    assert client.is_model_ready("shapes", "1")
    assert not client.is_model_ready("shapes", "99")
    assert not client.is_model_ready("nobody")


def test_the_metadata_name_the_tensors_the_versions_and_the_labels(client: Any) -> None:
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
    found = client.get_model_metadata("shapes")
    assert found == client.get_model_metadata("shapes", "1")
    assert (found["name"], found["versions"], found["platform"]) == ("shapes", ["1"], "onnxruntime_onnx")
    assert found["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}]
    assert found["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}]
    assert found["parameters"]["labels"] == list(LABELS)


@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [None, True, False])
def test_every_form_of_request_and_answer_gives_the_same_probabilities(
    client: Any, tiny: Any, batch: NDArray[np.uint8], packed: str | None, binary_in: bool, binary_out: bool | None
) -> None:
    asked = None if binary_out is None else [triton.InferRequestedOutput("probabilities", binary_data=binary_out)]
    answer = client.infer(
        "shapes",
        [images(batch, binary=binary_in)],
        outputs=asked,
        request_id="r-1",
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )
    found = answer.as_numpy("probabilities")
    assert (found.dtype, found.shape) == (np.float32, (5, 3))
    np.testing.assert_allclose(found, tiny(1).probabilities(batch), atol=1e-5)
    said = answer.get_response()
    assert (said["model_name"], said["model_version"], said["id"]) == ("shapes", "1", "r-1")
    assert [output["name"] for output in said["outputs"]] == ["probabilities"]


@pytest.mark.parametrize("binary", [True, False])
def test_labels_and_classes_come_when_they_are_asked_for(
    client: Any, tiny: Any, batch: NDArray[np.uint8], binary: bool
) -> None:
    wanted = tiny(1).probabilities(batch)
    asked = [
        triton.InferRequestedOutput("labels", binary_data=binary),
        triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2),
    ]
    answer = client.infer("shapes", [images(batch)], model_version="1", outputs=asked)
    names = [str(label, "utf-8") if binary else label for label in answer.as_numpy("labels")]
    assert names == [LABELS[index] for index in wanted.argmax(axis=1)]
    classes = answer.as_numpy("probabilities")
    assert classes.shape == (5, 2)
    for row, best in zip(classes, wanted, strict=True):
        order = np.argsort(-best)[:2]
        for text, index in zip(row, order, strict=True):
            value, found, label = (str(text, "utf-8") if binary else text).split(":")
            assert (int(found), label) == (index, LABELS[index])
            assert float(value) == pytest.approx(best[index], abs=1e-5)


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_image_files_are_taken_as_bytes(
    client: Any, tiny: Any, batch: NDArray[np.uint8], shape: tuple[int, ...]
) -> None:
    files = np.array([encode_png(one) for one in batch], dtype=object).reshape(shape)
    given = triton.InferInput("image", list(shape), "BYTES")
    given.set_data_from_numpy(files)
    found = client.infer("shapes", [given]).as_numpy("probabilities")
    np.testing.assert_allclose(found, tiny(1).probabilities(batch), atol=1e-5)


def test_many_requests_at_once_get_each_their_own_answer(http: httpx.Client, tiny: Any, make_image: Images) -> None:
    address = f"{http.base_url.host}:{http.base_url.port}"
    with triton.InferenceServerClient(address, concurrency=8) as client:
        asked = [client.async_infer("shapes", [images(make_image(number)[np.newaxis])]) for number in range(64)]
        found = np.concatenate([request.get_result().as_numpy("probabilities") for request in asked])
    wanted = tiny(1).probabilities(np.stack([make_image(number) for number in range(64)]))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_is_wrong_is_told_as_the_clients_own_error(client: Any, batch: NDArray[np.uint8]) -> None:
    for name, given, status in (
        ("nobody", images(batch), "404"),
        ("shapes", images(batch[:, :4]), "400"),
        ("shapes", images(np.concatenate([batch, batch])), "413"),
    ):
        with pytest.raises(triton.InferenceServerException) as raised:
            client.infer(name, [given])
        assert raised.value.status() == status
        assert raised.value.message().endswith(".")
