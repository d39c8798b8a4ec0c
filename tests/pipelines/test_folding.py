"""pipelines.folding, and what quantize makes of it: graphs of other exporters, whose nodes need no names."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from contracts.bundle import INPUT, OUTPUT
from contracts.image_spec import ImageSpec
from pipelines import graph, quantize

IMAGE = ImageSpec(height=8, width=8, channels=1)


def made(*, kernel: str = "w0") -> bytes:
    """Two blocks of Conv, Relu, BatchNormalization (scales of both signs), Softmax; no node has a name."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", [INPUT], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["n-1"], perm=[0, 3, 1, 2]),
    ]
    tensors = {}
    for block, channels in enumerate((1, 4)):
        weight = kernel if block == 0 else f"w{block}"
        tensors[weight] = random.normal(size=(4, channels, 3, 3)) * 0.1
        tensors |= {f"{part}{block}": random.normal(size=4) for part in ("bias", "scale", "shift", "mean")}
        tensors[f"variance{block}"] = random.uniform(0.5, 2, 4)
        norm = [f"{part}{block}" for part in ("scale", "shift", "mean", "variance")]
        nodes += [
            helper.make_node("Conv", [f"n{block - 1}", weight, f"bias{block}"], [f"c{block}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"c{block}"], [f"r{block}"]),
            helper.make_node("BatchNormalization", [f"r{block}", *norm], [f"n{block}"]),
        ]
    tensors["dense"] = random.normal(size=(4, 3)) * 0.1
    nodes += [
        helper.make_node("GlobalAveragePool", ["n1"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [OUTPUT], axis=-1),
    ]
    part = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *IMAGE.shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value.astype(np.float32), key) for key, value in tensors.items()],
    )
    model = helper.make_model(part, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (32, *IMAGE.shape), dtype=np.uint8)


def answers(model: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return graph.predict(graph.open_session(model), images, batch_size=16)


def operators(model: bytes | onnx.ModelProto) -> Counter[str]:
    loaded = onnx.load_model_from_string(model) if isinstance(model, bytes) else model
    return Counter(node.op_type for node in loaded.graph.node)


def test_nodes_without_names_are_folded(images: NDArray[np.uint8]) -> None:
    prepared = quantize.prepare(made())
    assert operators(prepared)["BatchNormalization"] == 0
    names = [node.name for node in prepared.graph.node]
    assert len(names) == len(set(names))
    np.testing.assert_allclose(answers(prepared.SerializeToString(), images), answers(made(), images), atol=1e-5)


def test_they_are_served_in_int8_and_in_half_precision_like_others(images: NDArray[np.uint8]) -> None:
    prepared = quantize.prepare(made())
    int8 = quantize.int8(
        prepared, quantize.calibrate(prepared, images, "minmax"), image=IMAGE, first_layer=True, exact=True
    )
    assert operators(int8)["QuantizeLinear"] >= 4
    assert np.abs(answers(int8, images) - answers(made(), images)).max() < 0.05
    half = quantize.fp16(made(), image=IMAGE)
    kinds = Counter(tensor.data_type for tensor in onnx.load_model_from_string(half).graph.initializer)
    assert kinds[TensorProto.FLOAT16] > 8
    assert np.abs(answers(half, images) - answers(made(), images)).max() < 0.02


def test_a_tensor_that_has_the_name_of_a_new_one_is_left_alone(images: NDArray[np.uint8]) -> None:
    taken = made(kernel="node_BatchNormalization_scale.weight")
    prepared = quantize.prepare(taken)
    np.testing.assert_allclose(answers(prepared.SerializeToString(), images), answers(taken, images), atol=1e-5)
