"""pipelines.quantize on real, small networks: what is folded, what stays in fp32, and what the result answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from contracts import cpu
from contracts.bundle import INPUT, Session
from contracts.image_spec import ImageSpec
from contracts.recipe import Convnet
from pipelines import graph, quantize
from pipelines.measure import interleaved
from services.inference import graph as served
from services.training.networks import ServedGraph, build

GRAY = ImageSpec(height=12, width=12, channels=1)
COLOUR = ImageSpec(height=12, width=12, channels=3)


def network(image: ImageSpec, *, scales: tuple[float, float] = (0.5, 1.5), filters: int = 8) -> bytes:
    """The ONNX file of two blocks with BatchNormalization behind the activation, its statistics drawn at random."""
    torch.manual_seed(0)
    block = {"filters": filters, "padding": "same", "repeat": 2, "norm": "batch", "norm_position": "after_activation"}
    content = {"kind": "convnet", "blocks": [block, block], "head": {"units": [16]}}
    model = Convnet.model_validate(content)
    made = build(model, image=image, classes=4)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(0.0, 0.5)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, *scales)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    wrapped = ServedGraph(made, output="softmax", mean=(0.4,) * image.channels, std=(0.2,) * image.channels)
    return graph.to_onnx(wrapped.eval(), image=image, opset=20)


@pytest.fixture(scope="module")
def model() -> bytes:
    return network(GRAY)


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (64, *GRAY.shape), dtype=np.uint8)


@pytest.fixture(scope="module")
def prepared(model: bytes) -> onnx.ModelProto:
    return quantize.prepare(model)


@pytest.fixture(scope="module")
def int8(prepared: onnx.ModelProto, images: NDArray[np.uint8]) -> bytes:
    ranges = quantize.calibrate(prepared, images, "minmax")
    return quantize.int8(prepared, ranges, image=GRAY, first_layer=True, exact=True)


def answers(model: bytes, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return graph.predict(graph.open_session(model), images, batch_size=16)


def operators(model: bytes | onnx.ModelProto) -> list[str]:
    loaded = onnx.load_model_from_string(model) if isinstance(model, bytes) else model
    return [node.op_type for node in loaded.graph.node]


@pytest.mark.parametrize("scales", [(0.5, 1.5), (-1.5, 1.5)], ids=["positive", "of both signs"])
def test_the_prepared_graph_answers_as_before_without_batch_normalization(
    images: NDArray[np.uint8], scales: tuple[float, float]
) -> None:
    model = network(GRAY, scales=scales)
    prepared = quantize.prepare(model)
    np.testing.assert_allclose(answers(prepared.SerializeToString(), images), answers(model, images), atol=1e-5)
    assert "BatchNormalization" not in operators(prepared)


def test_a_normalization_of_positive_scale_is_moved_past_the_pooling(prepared: onnx.ModelProto) -> None:
    found = operators(prepared)
    pools = [index for index, name in enumerate(found) if name == "MaxPool"]
    assert [(found[at - 1], found[at + 1]) for at in pools] == [("Relu", "Conv"), ("Relu", "Conv")]


def test_a_normalization_of_negative_scale_stays_before_the_pooling() -> None:
    found = operators(quantize.prepare(network(GRAY, scales=(-1.5, -0.5))))
    assert [found[index - 1] for index, name in enumerate(found) if name == "MaxPool"] == ["Conv", "Conv"]


def test_the_int8_graph_answers_nearly_as_fp32(model: bytes, int8: bytes, images: NDArray[np.uint8]) -> None:
    expected, found = answers(model, images), answers(int8, images)
    assert 0 < np.abs(found - expected).max() < 0.05
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


def test_it_answers_one_image_as_it_answers_many(int8: bytes, images: NDArray[np.uint8]) -> None:
    alone = graph.predict(graph.open_session(int8), images, batch_size=1)
    np.testing.assert_allclose(answers(int8, images), alone, atol=1e-6)


def test_normalisation_and_probabilities_stay_in_fp32(int8: bytes) -> None:
    nodes = list(onnx.load_model_from_string(int8).graph.node)
    writer = {name: node for node in nodes for name in node.output}
    softmax = nodes[-1]
    assert softmax.op_type == "Softmax"
    assert writer[softmax.input[0]].op_type == "Gemm"  # its logits are not rounded
    for name in ("Cast", "Sub", "Mul"):
        (node,) = [node for node in nodes if node.op_type == name]
        assert not {writer[each].op_type for each in node.input if each in writer} & {"DequantizeLinear"}


def test_weights_are_rounded_with_a_scale_a_channel(int8: bytes) -> None:
    tensors = {tensor.name: tensor for tensor in onnx.load_model_from_string(int8).graph.initializer}
    kernels = [
        tensor for tensor in tensors.values() if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(kernels) >= 4
    for kernel in kernels:
        scale = tensors[kernel.name.removesuffix("_quantized") + "_scale"]
        assert list(scale.dims) == [kernel.dims[0]]


def test_the_first_layer_can_stay_in_fp32(prepared: onnx.ModelProto, images: NDArray[np.uint8], model: bytes) -> None:
    ranges = quantize.calibrate(prepared, images, "minmax")
    made = quantize.int8(prepared, ranges, image=GRAY, first_layer=False, exact=True)
    weights = {tensor.name: tensor.data_type for tensor in onnx.load_model_from_string(made).graph.initializer}
    assert weights["network.block1.conv1.weight"] == onnx.TensorProto.FLOAT
    assert weights["network.block1.conv2.weight_quantized"] == onnx.TensorProto.INT8
    assert np.abs(answers(made, images) - answers(model, images)).max() < 0.05


def test_without_exact_products_weights_have_7_bits(prepared: onnx.ModelProto, images: NDArray[np.uint8]) -> None:
    ranges = quantize.calibrate(prepared, images, "minmax")
    largest = {}
    for exact in (True, False):
        made = quantize.int8(prepared, ranges, image=GRAY, first_layer=True, exact=exact)
        tensors = onnx.load_model_from_string(made).graph.initializer
        kernels = [onnx.numpy_helper.to_array(t) for t in tensors if t.data_type == onnx.TensorProto.INT8]
        largest[exact] = max(int(np.abs(kernel.astype(int)).max()) for kernel in kernels)
    assert largest == {True: 127, False: 64}


@pytest.mark.parametrize("method", quantize.CALIBRATIONS)
def test_every_calibration_gives_a_graph_that_agrees_with_fp32(
    prepared: onnx.ModelProto, images: NDArray[np.uint8], model: bytes, method: Any
) -> None:
    ranges = quantize.calibrate(prepared, images, method)
    found = answers(quantize.int8(prepared, ranges, image=GRAY, first_layer=True, exact=True), images)
    assert (found.argmax(axis=1) == answers(model, images).argmax(axis=1)).mean() > 0.8


def test_the_same_images_give_the_same_bytes(prepared: onnx.ModelProto, images: NDArray[np.uint8], int8: bytes) -> None:
    ranges = quantize.calibrate(prepared, images, "minmax")
    assert quantize.int8(prepared, ranges, image=GRAY, first_layer=True, exact=True) == int8


def test_colour_images_are_served_in_int8_too() -> None:
    images = np.random.default_rng(1).integers(0, 256, (32, *COLOUR.shape), dtype=np.uint8)
    model = network(COLOUR)
    prepared = quantize.prepare(model)
    made = quantize.int8(
        prepared, quantize.calibrate(prepared, images, "minmax"), image=COLOUR, first_layer=True, exact=True
    )
    assert np.abs(answers(made, images) - answers(model, images)).max() < 0.05


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_what_is_made_uses_only_operators_that_the_service_takes(model: bytes, int8: bytes, kind: str) -> None:
    made = int8 if kind == "int8" else quantize.fp16(model, image=GRAY)
    loaded = onnx.load_model_from_string(made)
    assert {node.domain for node in loaded.graph.node} <= served.DOMAINS
    assert {entry.domain for entry in loaded.opset_import} == {""}


def test_half_precision_answers_nearly_as_fp32_and_keeps_its_ends(model: bytes, images: NDArray[np.uint8]) -> None:
    made = quantize.fp16(model, image=GRAY)
    assert np.abs(answers(made, images) - answers(model, images)).max() < 5e-3
    kinds = Counter(tensor.data_type for tensor in onnx.load_model_from_string(made).graph.initializer)
    assert kinds[onnx.TensorProto.FLOAT16] > 8
    assert len(made) < 0.7 * len(model)


def test_nothing_is_printed_and_the_logger_stays_as_it_was(
    prepared: onnx.ModelProto, images: NDArray[np.uint8], capfd: pytest.CaptureFixture[str]
) -> None:
    level = logging.getLogger().level
    quantize.calibrate(prepared, images, "entropy")
    assert logging.getLogger().level == level
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("shape", "count"), [((8, 8, 1), 256), ((100, 100, 3), 64)])
def test_the_calibration_takes_an_even_sample(shape: tuple[int, int, int], count: int) -> None:
    images = np.zeros((1001, *shape), np.uint8)
    images[0], images[-1] = 1, 2
    chosen = quantize.calibration_images(images)
    assert chosen.shape == (count, *shape)
    assert (chosen[0].max(), chosen[-1].max()) == (1, 2)
    assert len(quantize.calibration_images(images[:10])) == 10


@pytest.mark.skipif(cpu.lacks_int8() is not None, reason=str(cpu.lacks_int8()))
def test_int8_takes_well_below_the_processor_time_of_fp32() -> None:
    """About 0.45 of it with AVX512-VNNI; a BatchNormalization left in fp32 alone makes it 1.0."""
    image = ImageSpec(height=28, width=28, channels=1)
    images = np.random.default_rng(0).integers(0, 256, (32, *image.shape), dtype=np.uint8)
    model = network(image, filters=32)
    prepared = quantize.prepare(model)
    ranges = quantize.calibrate(prepared, images, "minmax")
    made = quantize.int8(prepared, ranges, image=image, first_layer=False, exact=True)
    calls: dict[str, Callable[[], object]] = {}
    for name, graph_bytes in (("fp32", model), ("int8", made)):
        session = graph.open_session(graph_bytes, Session(threads=1))
        calls[name] = partial(session.run, None, {INPUT: images[:1]})

    timings = interleaved(calls, seconds=0.5)

    assert timings["int8"].cpu_s < 0.75 * timings["fp32"].cpu_s
