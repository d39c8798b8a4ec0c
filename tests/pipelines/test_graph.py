from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch

from contracts.errors import ExportError
from contracts.images import ImageSpec
from contracts.recipe import Backbone, Convnet
from pipelines import graph, parity
from services.training.evaluate import predict
from services.training.networks import ServedGraph, build

IMAGE = ImageSpec(height=8, width=8, channels=1)


@pytest.fixture(scope="module")
def model(graphs: dict[str, Any]) -> bytes:
    return graph.to_onnx(graphs["good"], image=IMAGE, opset=20)


def test_the_same_weights_give_the_same_bytes(graphs: dict[str, Any], model: bytes) -> None:
    assert graph.to_onnx(graphs["good"], image=IMAGE, opset=20) == model


def test_the_file_tells_nothing_of_the_machine_it_was_made_on(model: bytes) -> None:
    assert b".py" not in model
    assert b"stack_trace" not in model


@pytest.mark.parametrize("opset", [18, 25])
def test_every_opset_that_a_recipe_may_name_can_be_written_and_run(graphs: dict[str, Any], opset: int) -> None:
    model = graph.to_onnx(graphs["good"], image=IMAGE, opset=opset)

    answers = graph.predict(graph.open_session(model), np.zeros((3, 8, 8, 1), np.uint8), batch_size=2)
    assert answers.shape == (3, 10)
    assert [(entry.domain, entry.version) for entry in onnx.load_model_from_string(model).opset_import] == [("", opset)]


def test_a_residual_network_with_every_kind_of_block_answers_as_in_torch() -> None:
    torch.manual_seed(0)
    blocks = [
        {"filters": 8, "padding": "same", "norm": "batch", "bias": False, "activation": "gelu", "pool": "none"},
        {"filters": 8, "padding": "same", "norm": "batch", "repeat": 2, "residual": True, "activation": "silu"},
        {"filters": 16, "padding": "same", "kernel": 5, "activation": "leaky_relu", "pool": "average"},
        {"filters": 16, "padding": "same", "repeat": 2, "residual": True, "activation": "tanh", "pool": "none"},
    ]
    convnet = Convnet.model_validate({"blocks": blocks, "head": {"pool": "max", "dropout": 0.1}})
    image = ImageSpec(height=16, width=12, channels=3)
    served = ServedGraph(build(convnet, image=image, classes=5), output="softmax", mean=(0.4,) * 3, std=(0.2,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (20, *image.shape), dtype=np.uint8)
    for _ in range(3):  # BatchNorm's statistics are then those of images
        served.train()(torch.from_numpy(images))
    session = graph.open_session(graph.to_onnx(served, image=image, opset=20))
    answers = np.zeros(20, np.int64)
    seen, _ = parity.compare(served, session, images, answers, tolerance=1e-4, batch_sizes=(1, 7, 20))
    assert seen.argmax_differences == 0


def test_a_network_that_torch_cannot_export_is_told_in_a_sentence() -> None:
    class DataDependent(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float() if images.sum() > 9 else -images.float()

    with pytest.raises(ExportError, match="network DataDependent: torch could not write it as ONNX opset 20"):
        graph.to_onnx(DataDependent(), image=IMAGE, opset=20)


def test_a_network_that_fixes_the_batch_is_refused() -> None:
    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().reshape(2, -1)[:, :2].softmax(1)

    with pytest.raises(ExportError, match="its outputs are"):
        graph.to_onnx(Fixed(), image=IMAGE, opset=20)


def test_weights_in_another_file_are_refused(model: bytes) -> None:
    changed = onnx.load_model_from_string(model)
    tensor = changed.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../weights.bin")

    with pytest.raises(ExportError, match="lie in another file"):
        graph.check(changed, image=IMAGE)


def test_operators_of_another_domain_are_refused(model: bytes) -> None:
    changed = onnx.load_model_from_string(model)
    changed.graph.node[0].domain = "com.example"
    changed.opset_import.add(domain="com.example", version=1)

    with pytest.raises(ExportError, match=r"com\.example"):
        graph.check(changed, image=IMAGE)


def test_an_input_of_another_shape_is_refused(model: bytes) -> None:
    changed = onnx.load_model_from_string(model)

    with pytest.raises(ExportError, match="its inputs are"):
        graph.check(changed, image=ImageSpec(height=9, width=8, channels=1))


def test_bytes_that_are_no_graph_are_refused() -> None:
    with pytest.raises(ExportError, match="onnxruntime cannot load it"):
        graph.open_session(b"not a graph")


@pytest.mark.parametrize(("count", "size"), [(1, 1), (64, 64), (65, 64), (128, 64), (10, 7), (3, 7), (2, 1)])
def test_batches_cover_every_image_once_and_end_with_a_short_one(count: int, size: int) -> None:
    found = list(graph.batches(count, size))

    assert [start for start, _ in found] == [0, *(stop for _, stop in found[:-1])]
    assert found[-1][1] == count
    assert all(0 < stop - start <= size for start, stop in found)
    assert size == 1 or found[-1][1] - found[-1][0] < size


@pytest.mark.parametrize(
    ("name", "pool", "output"), [("squeezenet1_1", "flatten", "sigmoid"), ("resnet18", "max", "softmax")]
)
def test_a_held_backbone_with_dense_layers_is_answered_by_onnxruntime_as_by_torch(
    name: str, pool: str, output: str
) -> None:
    image = ImageSpec(height=48, width=40, channels=3)
    head = {"units": [8], "dropout": 0.5, "pool": pool, "output": output}
    model = Backbone.model_validate({"name": name, "head": head, "frozen": ["base"]})
    torch.manual_seed(0)
    network = build(model, image=image, classes=2)
    served = ServedGraph(
        network, output=model.output_activation, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ).train()
    session = graph.open_session(graph.to_onnx(served, image=image, opset=20))
    images = np.random.default_rng(0).integers(0, 256, (5, *image.shape), dtype=np.uint8)
    np.testing.assert_allclose(graph.predict(session, images, batch_size=3), predict(served, images), atol=1e-5)
