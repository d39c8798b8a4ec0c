"""The routes below /v2 with hand-made requests: what is refused, how, and that nothing of it harms the service."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.images import encode_png

Images = Callable[[int], NDArray[np.uint8]]
Case = tuple[bytes, dict[str, str], int]
INFER = "/v2/models/shapes/infer"
PIXELS = list(range(64))
PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": PIXELS} | changes


def packed(*inputs: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def case(body: bytes, status: int = 400, **headers: str) -> Case:
    return body, {name.replace("_", "-"): value for name, value in headers.items()}, status


def asking(name: str, **parameters: Any) -> bytes:
    return packed(tensor(), outputs=[{"name": name, "parameters": parameters}])


def binary(size: int, data: bytes, status: int = 400, *, length: int | None = None, **changes: Any) -> Case:
    """A tensor behind the JSON."""
    given = tensor(parameters={"binary_data_size": size}, **changes)
    del given["data"]
    head = packed(given)
    return case(head + data, status, inference_header_content_length=str(len(head) if length is None else length))


def files(*texts: Any, **changes: Any) -> bytes:
    return packed({"name": "image", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)} | changes)


GOOD = packed(tensor())
BOTH = packed(tensor(parameters={"binary_data_size": 64}))
CASES: dict[str, Case] = {
    "empty": case(b""),
    "no JSON": case(b"hello"),
    "an image": case(PNG),
    "half of a JSON": case(GOOD[:-10]),
    "UTF-16": case(GOOD.decode().encode("utf-16")),
    "broken UTF-8": case(b'{"id": "\xff", ' + GOOD[1:]),
    "100,000 levels of lists": case(b"[" * 100_000),
    "100,000 levels that are closed": case(b"[" * 90_000 + b"]" * 90_000),
    "100,000 levels of data": case(GOOD.replace(b"[0,", b"[" * 90_000 + b"]" * 90_000 + b", [0,", 1)),
    "20,000 levels of objects": case(b'{"a":' * 4_000 + b"1" + b"}" * 4_000),
    "a number of 5,000 digits": case(GOOD.replace(b" 63]", b" " + b"9" * 5_000 + b"]")),
    "NaN": case(packed(tensor(data=[float("nan")] * 64))),
    "infinity": case(packed(tensor(data=[float("inf")] * 64))),
    "NaN for a shape": case(packed(tensor(shape=float("nan")))),
    "a list at the top": case(b"[]"),
    "a number at the top": case(b"1"),
    "no inputs": case(b"{}"),
    "an empty list of inputs": case(packed()),
    "inputs that are no list": case(b'{"inputs": {"name": "images"}}'),
    "an input that is no object": case(b'{"inputs": ["images"]}'),
    "two inputs": case(packed(tensor(), tensor())),
    "an unknown input": case(packed(tensor(name="input_0"))),
    "no name": case(packed(tensor(name=None))),
    "a name that is a list": case(packed(tensor(name=["images"]))),
    "no datatype": case(packed(tensor(datatype=None))),
    "another datatype": case(packed(tensor(datatype="FP32"))),
    "no shape": case(packed(tensor(shape=None))),
    "a shape that is a text": case(packed(tensor(shape="1,8,8,1"))),
    "a shape of texts": case(packed(tensor(shape=["1", "8", "8", "1"]))),
    "a shape of fractions": case(packed(tensor(shape=[1.0, 8, 8, 1]))),
    "a shape of truths": case(packed(tensor(shape=[True, 8, 8, True]))),
    "a negative side": case(packed(tensor(shape=[-1, 8, 8, 1]))),
    "an enormous side": case(packed(tensor(shape=[10**30, 8, 8, 1]))),
    "an enormous product": case(packed(tensor(shape=[2**31 - 1, 8, 8, 1]))),
    "50 axes": case(packed(tensor(shape=[1] * 50))),
    "wrong rank": case(packed(tensor(shape=[8, 8]))),
    "channels first": case(packed(tensor(shape=[1, 1, 8, 8]))),
    "no image": case(packed(tensor(shape=[0, 8, 8, 1], data=[]))),
    "too few values": case(packed(tensor(data=PIXELS[:-1]))),
    "too many values": case(packed(tensor(data=[*PIXELS, 0]))),
    "ragged": case(packed(tensor(data=[[[[0]] * 8] * 7 + [[[0]] * 7]]))),
    "nested deeper than its shape": case(packed(tensor(data=[[[[[0]]] * 8] * 8]))),
    "half flat, half nested": case(packed(tensor(data=[[PIXELS[:32]], *PIXELS[32:]]))),
    "no data": case(packed(tensor(data=None))),
    "data that is a text": case(packed(tensor(data="0" * 64))),
    "data of texts": case(packed(tensor(data=["0"] * 64))),
    "data of fractions": case(packed(tensor(data=[0.5] * 64))),
    "data of truths": case(packed(tensor(data=[True] * 64))),
    "data of nulls": case(packed(tensor(data=[None] * 64))),
    "a value below 0": case(packed(tensor(data=[-1, *PIXELS[1:]]))),
    "a value above 255": case(packed(tensor(data=[256, *PIXELS[1:]]))),
    "parameters that are a list": case(packed(tensor(parameters=[1]))),
    "shared memory": case(packed(tensor(parameters={"shared_memory_region": "r", "shared_memory_byte_size": 64}))),
    "an id that is a number": case(packed(tensor(), id=7)),
    "binary_data_output that is a text": case(packed(tensor(), parameters={"binary_data_output": "yes"})),
    "an unknown output": case(packed(tensor(), outputs=[{"name": "logits"}])),
    "an output twice": case(packed(tensor(), outputs=[{"name": "labels"}, {"name": "labels"}])),
    "an output that is a text": case(packed(tensor(), outputs=["labels"])),
    "outputs that are an object": case(packed(tensor(), outputs={"name": "labels"})),
    "classes of labels": case(asking("labels", classification=1)),
    "a negative count": case(asking("probabilities", classification=-1)),
    "a count that is a text": case(asking("probabilities", classification="2")),
    "an output in shared memory": case(asking("probabilities", shared_memory_region="r")),
    "files that are no base64": case(files("***")),
    "files that are numbers": case(files(1, 2)),
    "files that are lists": case(files([1], [2])),
    "a file that is text": case(files(base64.b64encode(b"hello").decode()), 415),
    "an empty file": case(files("")),
    "half a file": case(files(base64.b64encode(PNG[:40]).decode())),
    "one bad file of two": case(files(base64.b64encode(PNG).decode(), base64.b64encode(b"x").decode()), 415),
    "files of another datatype": case(files("", datatype="UINT8")),
    "files of a wrong shape": case(files("", shape=[1, 2])),
    "nine images": case(packed(tensor(shape=[9, 8, 8, 1], data=PIXELS * 9)), 413),
    "binary: too few bytes": binary(64, b"\0" * 63),
    "binary: too many bytes": binary(64, b"\0" * 65),
    "binary: a wrong size": binary(63, b"\0" * 63),
    "binary: a negative size": binary(-1, b"\0" * 64),
    "binary: an enormous size": binary(2**62, b"\0" * 64),
    "binary: data as well": case(BOTH + b"\0" * 64, inference_header_content_length=str(len(BOTH))),
    "binary: no header": case(packed(tensor(parameters={"binary_data_size": 64}, data=None))),
    "binary: a header beyond the body": binary(64, b"\0" * 64, length=5_000),
    "binary: a header within the JSON": binary(64, b"\0" * 64, length=20),
    "binary: a header that is a text": case(GOOD, inference_header_content_length="ten"),
    "binary: a header that is negative": case(GOOD, inference_header_content_length="-1"),
    "binary: a header of 100 digits": case(GOOD, inference_header_content_length="9" * 100),
    "bare: no whole image": case(b"\0" * 65, inference_header_content_length="0"),
    "bare: nothing": case(b"", inference_header_content_length="0"),
    "bare: said to be JSON": case(GOOD, inference_header_content_length="0", content_type="application/json"),
    "packed: not at all": case(GOOD, content_encoding="gzip"),
    "packed: half": case(gzip.compress(GOOD)[:-8], content_encoding="gzip"),
    "packed: with a tail": case(gzip.compress(GOOD) + b"tail", content_encoding="gzip"),
    "packed: a bomb": case(zlib.compress(b"\0" * 100_000_000, 9), 413, content_encoding="deflate"),
    "packed: unknown": case(GOOD, 415, content_encoding="br"),
    "packed: twice": case(GOOD, 415, content_encoding="gzip, gzip"),
    "too many bytes": case(b" " * 300_000, 413),
    "60,000 lists": case(b'{"inputs": [' + b"[]," * 60_000 + b"[]]}"),
    "20,000 texts": case(b'{"inputs": [' + b'"a",' * 20_000 + b'"a"]}', 413),
    "an unknown variant": case(GOOD, 422, x_stride_variant="other"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_request_is_refused_rightly_and_the_next_one_is_answered(http: httpx.Client, name: str) -> None:
    body, headers, status = CASES[name]
    response = http.post(INFER, content=body, headers=headers)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    assert "Traceback" not in response.text
    assert "\n" not in response.json()["error"]
    assert len(response.text) < 600
    assert http.post(INFER, content=GOOD).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/shapes/", 404),
        ("GET", "/v2/models/shapes/versions/2", 404),
        ("GET", "/v2/models/shapes/versions/", 404),
        ("GET", "/v2/models/shapes/versions/1/2/ready", 404),
        ("GET", "/v2/models/shapes/config", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("POST", "/v2/models//infer", 404),
        ("POST", "/v2/models/shapes/versions/2/infer", 404),
        ("POST", "/v2/models/shapes/versions/" + "9" * 300 + "/infer", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/models/shapes", 405),
        ("PUT", "/v2/health/live", 405),
    ],
)
def test_a_wrong_address_or_method_is_one_error_object(http: httpx.Client, method: str, path: str, status: int) -> None:
    response = http.request(method, path, content=GOOD if method == "POST" else None)
    assert (response.status_code, response.json().keys()) == (status, {"error"})
    assert (status == 405) == ("allow" in response.headers)


def test_flat_and_nested_data_are_the_same(http: httpx.Client, tiny: Any, make_image: Images) -> None:
    batch = np.stack([make_image(number) for number in range(3)])
    flat = http.post(INFER, content=packed(tensor(shape=[3, 8, 8, 1], data=batch.ravel().tolist()))).json()
    nested = http.post(INFER, content=packed(tensor(shape=[3, 8, 8, 1], data=batch.tolist()))).json()
    assert flat == nested
    found = np.array(flat["outputs"][0]["data"]).reshape(flat["outputs"][0]["shape"])
    np.testing.assert_allclose(found, tiny(1).probabilities(batch), atol=1e-5)


def test_a_body_that_is_nothing_but_pixels_is_answered_in_binary(
    http: httpx.Client, tiny: Any, make_image: Images
) -> None:
    batch = np.stack([make_image(number) for number in range(3)])
    response = http.post(INFER, content=batch.tobytes(), headers={"Inference-Header-Content-Length": "0"})
    json_bytes = int(response.headers["inference-header-content-length"])
    assert response.headers["content-type"] == "application/octet-stream"
    assert json.loads(response.content[:json_bytes])["outputs"][0]["shape"] == [3, 3]
    found = np.frombuffer(response.content[json_bytes:], "<f4").reshape(3, 3)
    np.testing.assert_allclose(found, tiny(1).probabilities(batch), atol=1e-5)


def test_a_count_above_the_classes_gives_all_of_them(http: httpx.Client) -> None:
    asked = [{"name": "probabilities", "parameters": {"classification": 1_000_000}}]
    output = http.post(INFER, content=packed(tensor(), outputs=asked)).json()["outputs"][0]
    assert (output["datatype"], output["shape"], len(output["data"])) == ("BYTES", [1, 3], 3)


def test_unknown_parameters_are_left_to_other_servers(http: httpx.Client) -> None:
    body = packed(tensor(parameters={"content_type": "np"}), parameters={"priority": 1, "sequence_id": 4, "timeout": 9})
    assert http.post(INFER, content=body).status_code == 200


def test_an_answer_names_its_one_version_and_the_request(http: httpx.Client) -> None:
    response = http.post(INFER, content=packed(tensor(), id="ü\ud800"), headers={"X-Request-ID": "abc"})
    answer = response.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("shapes", "1", "ü\ud800")
    assert response.headers["x-stride-version"] == "1"
    assert response.headers["x-stride-provider"] == "CPUExecutionProvider"
    assert response.headers["x-request-id"] == "abc"


def test_five_declared_gigabytes_are_refused_before_they_are_sent(http: httpx.Client) -> None:
    with socket.create_connection((http.base_url.host, int(http.base_url.port or 0)), timeout=5) as client:
        client.sendall(b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000000\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_stream_without_a_length_is_cut_at_the_limit(http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b"[" * 16_384

    response = http.post(INFER, content=endless())
    assert (response.status_code, response.json().keys()) == (413, {"error"})


def test_a_client_that_leaves_in_the_middle_harms_nobody(http: httpx.Client) -> None:
    address = (http.base_url.host, int(http.base_url.port or 0))
    head = b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(GOOD)
    for sent in (b"", GOOD[:20], GOOD):
        with socket.create_connection(address, timeout=5) as client:
            client.sendall(head + sent)
    assert http.post(INFER, content=GOOD).status_code == 200


def test_the_metrics_count_predictions_of_this_way_in_too(http: httpx.Client) -> None:
    def value(series: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(series)), 0))

    series = ('stride_predictions_total{model="shapes"}', 'stride_http_requests_total{route="v2/infer",status="2xx"}')
    before = [value(one) for one in series]
    http.post(INFER, content=packed(tensor(shape=[3, 8, 8, 1], data=PIXELS * 3)))
    assert [value(one) for one in series] == [before[0] + 3, before[1] + 1]
