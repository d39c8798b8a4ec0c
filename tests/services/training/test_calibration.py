from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from contracts.errors import FitError
from services.training.calibration import BOUNDS, calibrate, fit_temperature, logits_of, predict_both
from services.training.data.dataset import Split
from services.training.evaluate import predict
from services.training.networks import ServedGraph
from services.training.scores import calibration_error


def answers(classes: int, n: int = 4000) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits whose softmax is honest: each label is drawn from it."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (n, classes)).astype(np.float32)
    labels = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return logits, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 10])
def test_the_temperature_that_was_taken_away_is_found_again(classes: int, temperature: float) -> None:
    logits, labels = answers(classes)
    assert fit_temperature(np.float32(temperature) * logits, labels) == pytest.approx(temperature, rel=0.08)


def test_one_sigmoid_unit_is_calibrated_as_two_logits_are() -> None:
    logits, labels = answers(2)
    unit = logits[:, 1:] - logits[:, :1]
    assert fit_temperature(3 * unit, labels) == pytest.approx(fit_temperature(3 * logits, labels), rel=1e-3)


def test_the_temperature_keeps_its_bounds() -> None:
    logits, labels = answers(3)
    assert fit_temperature(logits * np.float32(1000), labels) == pytest.approx(BOUNDS[1], rel=1e-3)
    assert fit_temperature(logits / np.float32(1000), labels) == pytest.approx(BOUNDS[0], rel=1e-3)


def test_without_a_mistake_nothing_says_how_much_surer_an_answer_may_be() -> None:
    logits, _ = answers(3)
    assert fit_temperature(logits, logits.argmax(axis=1)) == 1.0


def test_logits_that_are_not_finite_are_refused() -> None:
    logits, labels = answers(3)
    logits[0, 0] = np.nan
    with pytest.raises(FitError, match="not finite"):
        fit_temperature(logits, labels)


def _overconfident() -> tuple[ServedGraph, Split]:
    logits, labels = answers(3, n=1500)
    # The pixels carry the logits: four times too large, they make the network too sure of itself.
    images = (logits * 12 + 128).clip(0, 255).round().astype(np.uint8).reshape(-1, 1, 3, 1)
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5))
    graph = ServedGraph(network, output="softmax", mean=(128 / 255,), std=(3 / 255,))
    return graph, Split(images=images, labels=labels)


def test_calibration_sets_the_temperature_and_lowers_loss_and_calibration_error() -> None:
    graph, split = _overconfident()
    before = calibration_error(split.labels, predict(graph, split.images))
    found = calibrate(graph, split)
    assert found.temperature == float(graph.temperature) == pytest.approx(4, rel=0.1)
    assert found.loss_after < found.loss_before
    assert found.images == 1500
    assert calibration_error(split.labels, predict(graph, split.images)) < before / 3
    assert str(found).startswith(f"{found.temperature:.3f}, fitted on 1,500 validation images")


def test_both_answers_come_from_one_look_at_the_images() -> None:
    graph, split = _overconfident()
    plain = predict(graph, split.images)
    calibrate(graph, split)
    served, uncalibrated = predict_both(graph, split.images)
    np.testing.assert_array_equal(served, predict(graph, split.images))
    np.testing.assert_allclose(uncalibrated, plain, atol=1e-6)


def test_every_module_keeps_its_own_mode() -> None:
    graph, split = _overconfident()
    graph.train()
    graph.network[1].eval()  # type: ignore[index]
    logits_of(graph, split.images)
    assert graph.training
    assert not graph.network[1].training  # type: ignore[index]
    assert torch.is_grad_enabled()
