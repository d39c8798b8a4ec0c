from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from contracts.errors import ExportError
from contracts.images import ImageSpec
from pipelines import graph, parity
from services.training.data.dataset import Dataset

IMAGE = ImageSpec(height=8, width=8, channels=1)


@pytest.fixture(scope="module")
def model(graphs: dict[str, Any]) -> bytes:
    return graph.to_onnx(graphs["good"], image=IMAGE, opset=20)


def _compare(network: torch.nn.Module, model: bytes, digits: Dataset, **changes: Any) -> parity.Parity:
    settings: dict[str, Any] = {"tolerance": 1e-4, "batch_sizes": (1, 7, 64), **changes}
    session = graph.open_session(model)
    return parity.compare(network, session, digits.test.images, digits.test.labels, **settings)[0]


def test_a_graph_equals_its_network_on_every_test_image(graphs: dict[str, Any], model: bytes, digits: Dataset) -> None:
    seen = _compare(graphs["good"], model, digits)

    assert seen.images == len(digits.test.images)
    assert seen.compared == (seen.images,) * 3
    assert seen.largest_difference <= 1e-5
    assert seen.argmax_differences == 0
    assert seen.accuracy_torch == seen.accuracy_onnx > 0.85


def test_weights_that_were_changed_after_the_export_are_found(
    graphs: dict[str, Any], model: bytes, digits: Dataset
) -> None:
    sabotaged = onnx.load_model_from_string(model)
    weights = max(sabotaged.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    changed = numpy_helper.to_array(weights).copy()
    changed.flat[0] += 5
    weights.raw_data = changed.tobytes()

    with pytest.raises(ExportError, match=r"parity: torch and onnxruntime differ by up to .* \(tolerance 0\.0001\)"):
        _compare(graphs["good"], sabotaged.SerializeToString(), digits)


def test_another_networks_graph_is_found(graphs: dict[str, Any], model: bytes, digits: Dataset) -> None:
    with pytest.raises(ExportError, match="name another class for"):
        _compare(graphs["useless"], model, digits)


def test_a_difference_beyond_a_tiny_tolerance_is_found(graphs: dict[str, Any], model: bytes, digits: Dataset) -> None:
    nearly = copy.deepcopy(graphs["good"])
    with torch.no_grad():
        next(nearly.network.parameters()).mul_(1.001)

    with pytest.raises(ExportError, match="tolerance 1e-06"):
        _compare(nearly, model, digits, tolerance=1e-6)


def test_answers_that_are_not_finite_are_refused(graphs: dict[str, Any], model: bytes, digits: Dataset) -> None:
    broken = copy.deepcopy(graphs["good"])
    with torch.no_grad():
        next(broken.network.parameters()).fill_(float("nan"))

    with pytest.raises(ExportError, match="torch gives no finite probabilities"):
        _compare(broken, model, digits)


def test_another_number_of_classes_is_refused(model: bytes, digits: Dataset) -> None:
    class Two(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().flatten(1)[:, :2].softmax(1)

    with pytest.raises(ExportError, match=r"answers \(\d+, 10\), torch answers \(\d+, 2\)"):
        _compare(Two(), model, digits)


def test_an_empty_test_split_proves_nothing(graphs: dict[str, Any], model: bytes, digits: Dataset) -> None:
    with pytest.raises(ExportError, match="test split is empty"):
        parity.compare(
            graphs["good"],
            graph.open_session(model),
            digits.test.images[:0],
            digits.test.labels[:0],
            tolerance=1e-4,
            batch_sizes=(1,),
        )


@pytest.mark.parametrize(
    ("count", "size", "wanted"), [(360, 7, 360), (2000, 1, 2000), (10_000, 7, 512), (3000, 900, 1801)]
)
def test_small_batches_take_all_of_a_small_split_and_a_sample_of_a_large_one(
    count: int, size: int, wanted: int
) -> None:
    chosen = parity.sample(count, size)

    assert len(set(chosen.tolist())) == wanted
    assert (chosen[0], chosen[-1]) == (0, count - 1)


def test_an_underflowing_probability_gives_a_finite_loss() -> None:
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)

    assert parity.loss(probabilities, np.array([0, 1])) == 0
    assert 40 < parity.loss(probabilities, np.array([1, 1])) < 50


def test_the_majority_baseline_is_the_share_of_the_most_common_label() -> None:
    assert parity.majority_baseline(np.array([2, 0, 2])) == pytest.approx(2 / 3)
    assert parity.majority_baseline(np.array([1])) == 1


def test_macro_f1_weighs_every_class_alike() -> None:
    chosen = np.eye(3, dtype=np.float32)[[0, 0, 0, 1]]

    # class 0: 2*3/(3+3); class 1: 0 of (1+0); class 2: 0 of (0+1)
    assert parity.macro_f1(chosen, np.array([0, 0, 0, 2])) == pytest.approx(1 / 3)
