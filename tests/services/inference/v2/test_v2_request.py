"""services.inference.v2.request, tensors, unpack and response by themselves."""

from __future__ import annotations

import json
import struct
import zlib
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import MalformedBody, StrideError, TooLarge
from contracts.images import ImageSpec
from services.inference.errors import InferenceFailed, InvalidTensor
from services.inference.model import Model
from services.inference.v2 import response, tensors, unpack
from services.inference.v2.request import MAX_JSON_BYTES, Output, Request, parse


def model(height: int = 2, width: int = 3, channels: int = 1) -> Model:
    """What is asked of a model here: its input, its labels and its name."""
    spec = ImageSpec(height=height, width=width, channels=cast("Any", channels))
    return cast("Model", SimpleNamespace(name="m", version="1", spec=spec, labels=("a", 'b"ü', "c:d")))


def body_of(inputs: list[dict[str, Any]], behind: bytes = b"", **more: Any) -> tuple[bytes, int]:
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + behind, len(head)


@given(st.integers(1, 5), st.sampled_from([1, 3]), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_any_tensor_comes_through_every_form_as_it_is(rows: int, channels: int, random: Any) -> None:
    wanted = np.frombuffer(random.randbytes(rows * 6 * channels), np.uint8).reshape(rows, 2, 3, channels)
    base = {"name": "images", "datatype": "UINT8", "shape": list(wanted.shape)}
    binary = body_of([{**base, "parameters": {"binary_data_size": wanted.nbytes}}], wanted.tobytes())
    served = model(channels=channels)
    for body, length in (
        binary,
        (body_of([{**base, "data": wanted.ravel().tolist()}])[0], None),
        (body_of([{**base, "data": wanted.tolist()}])[0], None),
    ):
        np.testing.assert_array_equal(np.asarray(tensors.sent(parse(body, length).inputs, served)), wanted)
    np.testing.assert_array_equal(tensors.bare(wanted.tobytes(), served), wanted)


def test_a_binary_tensor_is_the_body_itself_and_not_a_copy() -> None:
    one = {"name": "images", "datatype": "UINT8", "shape": [1, 2, 3, 1], "parameters": {"binary_data_size": 6}}
    body, length = body_of([one], b"012345")
    sent = np.asarray(tensors.sent(parse(body, length).inputs, model()))
    assert np.shares_memory(sent, np.frombuffer(body, np.uint8))
    assert np.shares_memory(tensors.bare(bare := b"012345", model()), np.frombuffer(bare, np.uint8))


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_files_behind_their_lengths_are_read_and_cut_anywhere_are_refused(files: list[bytes]) -> None:
    raw = b"".join(struct.pack("<I", len(data)) + data for data in files)
    base = {"name": "image", "datatype": "BYTES", "shape": [len(files)]}
    body, length = body_of([{**base, "parameters": {"binary_data_size": len(raw)}}], raw)
    assert tensors.sent(parse(body, length).inputs, model()) == files
    for end in range(len(raw)):
        body, length = body_of([{**base, "parameters": {"binary_data_size": end}}], raw[:end])
        with pytest.raises(InvalidTensor):
            tensors.sent(parse(body, length).inputs, model())


def test_a_length_of_four_gigabytes_within_a_tensor_is_refused() -> None:
    raw = struct.pack("<I", 2**32 - 1) + b"x"
    base = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    body, length = body_of([base], raw)
    with pytest.raises(InvalidTensor, match="longer than what is left"):
        tensors.sent(parse(body, length).inputs, model())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "outputs", "name", "shape", "datatype", "data", "parameters", "binary_data_size"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(JSON | st.fixed_dictionaries({"inputs": st.lists(JSON, max_size=2)}))
@settings(max_examples=100, deadline=None)
def test_whatever_the_json_says_only_our_own_errors_are_raised(content: Any) -> None:
    with pytest.raises(StrideError) as raised:
        tensors.sent(parse(json.dumps(content).encode(), None).inputs, model())
    assert raised.value.status in (400, 413)
    assert len(raised.value.message) < 400


@given(st.binary(max_size=60), st.none() | st.integers(0, 80))
@settings(max_examples=100, deadline=None)
def test_whatever_the_bytes_are_only_our_own_errors_are_raised(body: bytes, length: int | None) -> None:
    with pytest.raises(StrideError) as raised:
        parse(body, length)
    assert raised.value.status in (400, 413)


@pytest.mark.parametrize(
    "body",
    [
        b" " * (MAX_JSON_BYTES + 1),
        b"[" + b"[]," * 600_000 + b"[]]",
        b"[" + b"{}," * 600_000 + b"{}]",
        b"[" + b'"ab",' * 11_000 + b"1]",
    ],
    ids=["bytes", "lists", "objects", "texts"],
)
def test_a_json_that_would_grow_is_refused_before_it_is_parsed(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(TooLarge):
        parse(body, None)


def test_unpacking_stops_at_the_limit() -> None:
    packed = zlib.compress(b"\0" * 1000)
    assert unpack.unpack(packed, most=1000) == b"\0" * 1000
    with pytest.raises(TooLarge):
        unpack.unpack(packed, most=999)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_what_is_not_packed_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedBody):
        unpack.unpack(b"\0" + data, most=1000)


def test_labels_of_any_letters_survive_both_forms() -> None:
    served, probabilities = model(), np.array([[0.2, 0.5, 0.3]], dtype=np.float32)
    for binary in (True, False):
        asked = (Output("labels", binary, None), Output("probabilities", binary, 2))
        body, length = response.write(Request("i", (), asked, binary=False), served, probabilities)
        head = json.loads(body[:length])
        assert [output["shape"] for output in head["outputs"]] == [[1], [1, 2]]
        if binary:
            behind = body[length:]
            assert all(text.encode() in behind for text in ('b"ü', '0.5:1:b"ü', "0.3:2:c:d"))
        else:
            assert [output["data"] for output in head["outputs"]] == [['b"ü'], ['0.5:1:b"ü', "0.3:2:c:d"]]


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_a_probability_in_json_is_the_float32_to_the_last_bit(values: list[float]) -> None:
    probabilities = np.array([values], dtype=np.float32)
    body, _ = response.write(Request(None, (), (), binary=False), model(), probabilities)
    found = np.array(json.loads(body)["outputs"][0]["data"], dtype=np.float32)
    assert found.tobytes() == probabilities.tobytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_that_is_no_number_is_our_failure(value: float) -> None:
    with pytest.raises(InferenceFailed):
        response.write(Request(None, (), (), binary=True), model(), np.array([[value, 0, 0]], dtype=np.float32))
