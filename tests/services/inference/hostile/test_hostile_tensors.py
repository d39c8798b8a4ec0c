"""Requests of the Open Inference Protocol that follow it badly: JSON, tensors, lengths, packing."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import Any, Final

import numpy as np
import pytest

from contracts.images import encode_png

PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
INFER: Final = "/v2/models/shapes/infer"
IMAGES: dict[str, Any] = {"name": "images", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [0] * 64}
FILE: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(PNG).decode()]}


def post(body: bytes, *headers: str, path: str = INFER) -> bytes:
    """The request on the wire."""
    fields = "".join(f"{header}\r\n" for header in (f"Content-Length: {len(body)}", "Connection: close", *headers))
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode() + body


def asks(*inputs: Any, **rest: Any) -> bytes:
    return post(json.dumps({"inputs": list(inputs), **rest}).encode(), "Content-Type: application/json")


def images(**changed: Any) -> bytes:
    return asks(IMAGES | changed)


def file(**changed: Any) -> bytes:
    return asks(FILE | changed)


def text(body: str | bytes) -> bytes:
    return post(body if isinstance(body, bytes) else body.encode(), "Content-Type: application/json")


def binary(tensor: bytes, length: str | None = None, **changed: Any) -> bytes:
    given = {key: value for key, value in IMAGES.items() if key != "data"}
    content = given | {"parameters": {"binary_data_size": len(tensor)}} | changed
    head = json.dumps({"inputs": [content]}).encode()
    return post(head + tensor, f"Inference-Header-Content-Length: {len(head) if length is None else length}")


def element(data: bytes, length: int | None = None) -> bytes:
    return (len(data) if length is None else length).to_bytes(4, "little") + data


BYTES: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1]}
PACKED = gzip.compress(json.dumps({"inputs": [IMAGES]}).encode())

CASES: dict[str, tuple[bytes, int]] = {
    # What is right, so that the rest is known to fail for its own reason.
    "a tensor": (images(), 200),
    "a file": (file(), 200),
    "a binary tensor": (binary(b"\0" * 64), 200),
    "a binary file": (binary(element(PNG), **BYTES), 200),
    "a packed request": (post(PACKED, "Content-Encoding: gzip"), 200),
    # JSON
    "nothing": (text(""), 400),
    "no JSON": (text("hello"), 400),
    "an image instead": (text(PNG), 400),
    "null": (text("null"), 400),
    "a number": (text("1"), 400),
    "a list": (text("[]"), 400),
    "an empty object": (text("{}"), 400),
    "100,000 lists inside each other": (text('{"inputs": ' + "[" * 100_000), 400),
    "100,000 closed lists inside each other": (text('{"inputs": ' + "[" * 100_000 + "]" * 100_000 + "}"), 400),
    "100,000 objects inside each other": (text('{"a": ' * 100_000 + "1" + "}" * 100_000), 413),
    "data of 100,000 levels": (
        text(json.dumps({"inputs": [IMAGES | {"data": 0}]}).replace('"data": 0', '"data": ' + "[" * 100_000)), 400),
    "1,000,000 empty lists": (text('{"inputs": [' + "[]," * 1_000_000 + "[]]}"), 413),
    "100,000 inputs": (asks(*[{}] * 100_000), 400),
    "100,000 keys": (text(json.dumps({str(number): number for number in range(100_000)})), 413),
    "9 MB of JSON": (text('{"inputs": [' + " " * 9_000_000 + "]}"), 413),
    "the same key twice": (text('{"inputs": [], "inputs": []}'), 400),
    "not whole": (text('{"inputs": [{"name": "ima'), 400),
    "two objects": (text('{"inputs": []}{"inputs": []}'), 400),
    "a comma too many": (text('{"inputs": [],}'), 400),
    "a comment": (text('{"inputs": [] /* none */}'), 400),
    "not UTF-8": (text(b'{"inputs": "\xff\xfe"}'), 400),
    "UTF-16": (text('{"inputs": []}'.encode("utf-16")), 400),
    "a byte order mark": (text(b"\xef\xbb\xbf" + json.dumps({"inputs": [IMAGES]}).encode()), 400),
    "null bytes": (text("\0" * 1_000), 400),
    "half a surrogate as a name": (text('{"inputs": [{"name": "\\ud800"}]}'), 400),
    "half a surrogate as the id": (text(json.dumps({"id": "\ud800", "inputs": [IMAGES]})), 200),
    "an id that is a list": (asks(IMAGES, id=[1]), 400),
    "an id of 100,000 bytes": (asks(IMAGES, id="a" * 100_000), 200),
    "a number of 5,000 digits": (text('{"inputs": %s}' % ("9" * 5_000)), 400),
    "parameters that are a list": (asks(IMAGES, parameters=[1]), 400),
    "inputs that are an object": (text('{"inputs": {"images": 1}}'), 400),
    # Tensors
    "NaN": (images(data=[float("nan")] * 64), 400),
    "infinity": (images(data=[float("inf")] + [0] * 63), 400),
    "1e999": (text(json.dumps({"inputs": [IMAGES]}).replace("[0, 0", "[1e999, 0")), 400),
    "a fraction": (images(data=[0.5] * 64), 400),
    "a whole fraction": (images(data=[1.0] * 64), 400),
    "negative": (images(data=[-1] * 64), 400),
    "256": (images(data=[256] * 64), 400),
    "2^80": (images(data=[2**80] * 64), 400),
    "texts": (images(data=["0"] * 64), 400),
    "truths": (images(data=[True] * 64), 400),
    "nulls": (images(data=[None] * 64), 400),
    "objects": (images(data=[{}] * 64), 400),
    "one text among numbers": (images(data=[0] * 63 + ["0"]), 400),
    "a text instead of a list": (images(data="0" * 64), 400),
    "an object instead of a list": (images(data={"0": 0}), 400),
    "no data": (images(data=None), 400),
    "an empty list": (images(data=[]), 400),
    "too few values": (images(data=[0] * 63), 400),
    "too many values": (images(data=[0] * 65), 400),
    "ragged": (images(data=[[[[0]] * 8] * 7 + [[[0]] * 7]]), 400),
    "nested less than its shape": (images(data=[[0] * 64]), 400),
    "nested deeper than its shape": (images(data=[[[[[0]] * 1] * 8] * 8]), 400),
    "lists among numbers": (images(data=[0] * 63 + [[0]]), 400),
    "of rank 2": (images(shape=[1, 64]), 400),
    "of rank 0": (images(shape=[]), 400),
    "of rank 1,000": (images(shape=[1] * 1_000), 400),
    "of another size": (images(shape=[1, 4, 16, 1]), 400),
    "channels first": (images(shape=[1, 1, 8, 8]), 400),
    "no rows": (images(shape=[0, 8, 8, 1], data=[]), 400),
    "-1 rows": (images(shape=[-1, 8, 8, 1]), 400),
    "2^31 rows": (images(shape=[2**31, 8, 8, 1]), 400),
    "2^31-1 rows": (images(shape=[2**31 - 1, 8, 8, 1]), 400),
    "2^62 rows": (images(shape=[2**62, 8, 8, 1]), 400),
    "a row and a half": (images(shape=[1.5, 8, 8, 1]), 400),
    "true rows": (images(shape=[True, 8, 8, 1]), 400),
    "a shape in words": (images(shape="1, 8, 8, 1"), 400),
    "no shape": (images(shape=None), 400),
    "65 rows": (images(shape=[65, 8, 8, 1], data=[0] * 65 * 64), 413),
    "of floats": (images(datatype="FP32"), 400),
    "of a type in lower case": (images(datatype="uint8"), 400),
    "of a type that does not exist": (images(datatype="UINT9" * 1_000), 400),
    "of no type": (images(datatype=None), 400),
    "of an unknown name": (images(name="pixels"), 400),
    "of a name of 100,000 bytes": (images(name="a" * 100_000), 400),
    "of no name": (images(name=None), 400),
    "two inputs": (asks(IMAGES, IMAGES), 400),
    "tensor and file": (asks(IMAGES, FILE), 400),
    "shared memory": (images(parameters={"shared_memory_region": "region", "shared_memory_byte_size": 64}), 400),
    # Files
    "a file that is no base64": (file(data=["!" * 100]), 400),
    "a file that is base64 of no image": (file(data=["aGVsbG8="]), 415),
    "an empty file": (file(data=[""]), 400),
    "a file that is a number": (file(data=[1]), 400),
    "a file that is null": (file(data=[None]), 400),
    "a file that is an address": (file(data=["http://127.0.0.1:22/"]), 400),
    "fewer files than the shape": (file(shape=[2]), 400),
    "65 files": (file(shape=[65], data=FILE["data"] * 65), 413),
    "10,000 files": (file(shape=[10_000], data=[""] * 10_000), 413),
    "files as UINT8": (file(datatype="UINT8"), 400),
    # Outputs
    "an unknown output": (asks(IMAGES, outputs=[{"name": "logits"}]), 400),
    "an output without a name": (asks(IMAGES, outputs=[{}]), 400),
    "an output that is a text": (asks(IMAGES, outputs=["probabilities"]), 400),
    "10,000 outputs": (asks(IMAGES, outputs=[{"name": "probabilities"}] * 10_000), 413),
    "-1 classes": (asks(IMAGES, outputs=[{"name": "probabilities", "parameters": {"classification": -1}}]), 400),
    "2^70 classes": (asks(IMAGES, outputs=[{"name": "probabilities", "parameters": {"classification": 2**70}}]), 200),
    "binary or not, in words": (
        asks(IMAGES, outputs=[{"name": "probabilities", "parameters": {"binary_data": "yes"}}]), 400),
    # Binary tensors
    "a binary size without the header": (images(data=None, parameters={"binary_data_size": 64}), 400),
    "data and a binary size": (binary(b"\0" * 64, data=[0] * 64), 400),
    "a byte too few": (binary(b"\0" * 63), 400),
    "a byte too many": (binary(b"\0" * 65), 400),
    "bytes that belong to nobody": (binary(b"\0" * 99, parameters={"binary_data_size": 64}), 400),
    "a size that is larger than the body": (binary(b"\0" * 64, parameters={"binary_data_size": 2**40}), 400),
    "a negative size": (binary(b"\0" * 64, parameters={"binary_data_size": -64}), 400),
    "a size in words": (binary(b"\0" * 64, parameters={"binary_data_size": "64"}), 400),
    "a true size": (binary(b"\0" * 64, parameters={"binary_data_size": True}), 400),
    "a header length of 0, and JSON": (binary(b"\0" * 64, length="0"), 400),
    "a header length of the bare tensor": (post(b"\0" * 64, "Inference-Header-Content-Length: 0"), 200),
    "a header length of 1": (binary(b"\0" * 64, length="1"), 400),
    "a header length of 10^15": (binary(b"\0" * 64, length="999999999999999"), 400),
    "a header length of 50 digits": (binary(b"\0" * 64, length="9" * 50), 400),
    "a negative header length": (binary(b"\0" * 64, length="-1"), 400),
    "a header length in words": (binary(b"\0" * 64, length="many"), 400),
    "an element that is longer than the tensor": (binary(element(PNG, 2**32 - 1), **BYTES), 400),
    "an element without bytes": (binary(element(b""), **BYTES), 400),
    "an element whose length is not whole": (binary(b"\0\0", **BYTES), 400),
    "an element too many": (binary(element(PNG) * 2, **BYTES), 400),
    "100,000 empty elements": (binary(element(b"") * 100_000, **BYTES | {"shape": [100_000]}), 413),
    # Packing
    "50 MB of zeros, packed": (post(zlib.compress(b"\0" * 50_000_000, 1), "Content-Encoding: deflate"), 413),
    "packed, not whole": (post(PACKED[:-9], "Content-Encoding: gzip"), 400),
    "packed twice": (post(gzip.compress(PACKED), "Content-Encoding: gzip"), 400),
    "said to be packed": (post(b"{}", "Content-Encoding: gzip"), 400),
    "packed by something unknown": (post(b"{}", "Content-Encoding: br"), 415),
    "packed by many": (post(PACKED, "Content-Encoding: gzip, gzip"), 415),
    # Addresses
    "an unknown model": (post(b"{}", path="/v2/models/nobody/infer"), 404),
    "an unknown version": (post(b"{}", path="/v2/models/shapes/versions/99/infer"), 404),
    "a version in words": (post(b"{}", path="/v2/models/shapes/versions/../infer"), 404),
    "a version of 5,000 digits": (post(b"{}", path=f"/v2/models/shapes/versions/{'9' * 5_000}/infer"), 404),
    "no name": (post(b"{}", path="/v2/models//infer"), 404),
    "a name that leads out": (post(b"{}", path="/v2/models/%2e%2e%2f/infer"), 404),
    "deeper than any address": (post(b"{}", path="/v2/models" + "/a" * 5_000), 404),
    "a null byte as the name": (post(b"{}", path="/v2/models/%00/infer"), 404),
    "a repository's address": (post(b"{}", path="/v2/repository/index"), 404),
    "a model to be loaded": (post(b"{}", path="/v2/repository/models/shapes/load"), 404),
    "shared memory to be opened": (post(b"{}", path="/v2/systemsharedmemory/region/a/register"), 404),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_tensor_is_refused_and_the_error_is_one_text(attack: Any, case: str) -> None:
    sent, status = CASES[case]
    attack(sent, status=status)
    if status != 200:
        content = json.loads(attack.exchange(sent).partition(b"\r\n\r\n")[2])
        assert content.keys() == {"error"}
        assert "\n" not in content["error"]
        assert len(content["error"]) < 600


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 100_000, b'{"image": "http://127.0.0.1:22/"}', b"\x80\x04N."])
@pytest.mark.parametrize(
    "kind", ["application/json", "application/vnd.bentoml+pickle", "multipart/form-data", "text/plain"]
)
def test_the_way_in_for_bentomls_clients_is_no_weaker(attack: Any, body: bytes, kind: str) -> None:
    attack(post(body, f"Content-Type: {kind}", path="/predict"), status=(400, 415, 422))
