"""services.inference.engine and graph: what is loaded, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from contracts.bundle import Bundle, write
from contracts.errors import BundleError, DeviceError
from services.inference import provider
from services.inference.engine import Engine
from services.inference.provider import CPU, CUDA, Provider

Images = Callable[[int], NDArray[np.uint8]]


def load(bundle: Bundle, name: Any = CPU) -> Engine:
    return Engine(bundle, Provider(name, "a test"), threads=1, max_batch=4)


@pytest.mark.parametrize("rows", [1, 3, 4, 11])
def test_a_batch_of_any_size_gets_the_probabilities_of_the_network(
    tiny: Any, make_image: Images, tmp_path: Path, rows: int
) -> None:
    batch = np.stack([make_image(k) for k in range(rows)])
    answer = load(tiny(1).bundle(tmp_path / "b")).infer(batch)
    np.testing.assert_allclose(answer, tiny(1).probabilities(batch), atol=1e-6)


def test_a_wrong_golden_answer_is_refused(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"golden-0\.png with a difference of"):
        load(tiny(1).bundle(tmp_path / "b", wrong=0.01))


def test_a_graph_that_onnxruntime_cannot_load_is_refused(tiny: Any, tmp_path: Path) -> None:
    model = tiny(1).graph()
    model.graph.node[2].op_type = "NoSuchOperator"
    with pytest.raises(BundleError, match="cannot be loaded"):
        load(tiny(1).bundle(tmp_path / "b", model=model))


def test_external_data_is_refused(tiny: Any, tmp_path: Path) -> None:
    model = tiny(1).graph()
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "../../secret")
    with pytest.raises(BundleError, match="in another file"):
        load(tiny(1).bundle(tmp_path / "b", model=model))


def test_an_operator_of_an_unknown_domain_is_refused(tiny: Any, tmp_path: Path) -> None:
    model = tiny(1).graph()
    model.graph.node[0].domain = "com.example"
    with pytest.raises(BundleError, match=r"com\.example\.Cast"):
        load(tiny(1).bundle(tmp_path / "b", model=model))


@pytest.mark.parametrize(("side", "value"), [(0, 1), (1, 9), (3, 3)])
def test_a_fixed_batch_or_another_input_size_is_refused(tiny: Any, tmp_path: Path, side: int, value: int) -> None:
    model = tiny(1).graph()
    model.graph.input[0].type.tensor_type.shape.dim[side].dim_value = value
    with pytest.raises(BundleError, match="is expected"):
        load(tiny(1).bundle(tmp_path / "b", model=model))


@pytest.mark.skipif(provider.choose("auto", require_gpu=False).name == CUDA, reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused_and_never_replaced_by_the_cpu(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="STRIDE_DEVICE is cuda, but there is no usable GPU"):
        provider.choose("cuda", require_gpu=False)
    with pytest.raises((DeviceError, BundleError)):
        load(tiny(1).bundle(tmp_path / "b"), CUDA)


def test_the_choice_comes_with_its_reason() -> None:
    chosen = provider.choose("auto", require_gpu=False)
    assert chosen.reason
    assert provider.choose("cpu", require_gpu=False) == Provider(CPU, "STRIDE_DEVICE is cpu")


@pytest.mark.gpu
def test_on_a_gpu_the_answers_are_those_of_the_cpu(tiny: Any, make_image: Images, tmp_path: Path) -> None:
    bundle = tiny(1).bundle(tmp_path / "b")
    batch = np.stack([make_image(k) for k in range(3)])  # padded to a bucket of 4
    np.testing.assert_allclose(load(bundle, CUDA).infer(batch), load(bundle).infer(batch), atol=5e-3)


def test_a_golden_image_that_cannot_be_decoded_is_the_fault_of_the_bundle(tiny: Any, tmp_path: Path) -> None:
    known = tiny(1).bundle(tmp_path / "b")
    files = {"model.onnx": known.read("model.onnx"), "golden-0.png": known.read("golden-0.png")[:-30]}
    broken = write(tmp_path / "broken", known.manifest, files)
    with pytest.raises(BundleError, match=r"golden-0\.png cannot be decoded"):
        load(broken)


def hidden(where: str) -> onnx.GraphProto:
    """A graph whose one tensor lies in another file, as an initializer or a constant."""
    tensor = onnx.numpy_helper.from_array(np.zeros(3, dtype=np.float32), "secret")
    onnx.external_data_helper.set_external_data(tensor, "../../secret")
    tensor.ClearField("raw_data")
    output = onnx.helper.make_tensor_value_info("secret", onnx.TensorProto.FLOAT, [3])
    nodes = [] if where == "initializer" else [onnx.helper.make_node("Constant", [], ["secret"], value=tensor)]
    return onnx.helper.make_graph(nodes, "branch", [], [output], [] if nodes else [tensor])


@pytest.mark.parametrize("where", ["initializer", "constant"])
def test_external_data_is_refused_in_a_branch_without_nodes_and_in_a_function(
    tiny: Any, tmp_path: Path, where: str
) -> None:
    model = tiny(1).graph()
    branch = onnx.helper.make_node("If", ["truth"], ["out"], then_branch=hidden(where), else_branch=hidden(where))
    if where == "initializer":
        model.graph.node.append(branch)
    else:
        opset = [onnx.helper.make_opsetid("", 20)]
        constant = onnx.helper.make_function("local", "F", [], ["secret"], list(hidden(where).node), opset)
        model.functions.append(constant)
    with pytest.raises(BundleError, match="in another file"):
        load(tiny(1).bundle(tmp_path / "b", model=model))
