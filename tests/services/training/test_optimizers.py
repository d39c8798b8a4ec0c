from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from contracts.recipe import Optimizer
from services.training.optimizers import make_optimizer


def one_parameter(start: list[float]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(start))


def test_keras_rmsprop_is_the_formula_computed_by_hand() -> None:
    gradients = np.array([[0.5, -1e-5], [0.1, 2e-5], [-0.3, 1e-6]])
    weights, mean_square = np.array([1.0, 1.0]), np.zeros(2)
    for gradient in gradients:
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        weights -= 1e-3 * gradient / np.sqrt(mean_square + 1e-7)
    parameter = one_parameter([1.0, 1.0])
    optimizer = make_optimizer(Optimizer(name="rmsprop", epsilon=1e-7, epsilon_inside_sqrt=True), [parameter])
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), weights, rtol=1e-6)


def test_keras_rmsprop_takes_far_shorter_steps_than_torch_where_gradients_are_small() -> None:
    steps = {}
    for inside in (True, False):
        parameter = one_parameter([0.0])
        optimizer = make_optimizer(Optimizer(name="rmsprop", epsilon=1e-7, epsilon_inside_sqrt=inside), [parameter])
        parameter.grad = torch.tensor([1e-6])
        optimizer.step()
        steps[inside] = abs(parameter.item())
    assert steps[True] < 0.01 * steps[False]


def test_keras_rmsprop_has_momentum_and_weight_decay() -> None:
    parameter = one_parameter([2.0])
    config = Optimizer(name="rmsprop", lr=0.1, momentum=0.5, weight_decay=0.1, epsilon=1e-7, epsilon_inside_sqrt=True)
    optimizer = make_optimizer(config, [parameter])
    expected, velocity, mean_square = 2.0, 0.0, 0.0
    for _ in range(3):
        gradient = 1.0 + 0.1 * expected
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        velocity = 0.5 * velocity + 0.1 * gradient / (mean_square + 1e-7) ** 0.5
        expected -= velocity
        parameter.grad = torch.tensor([1.0])
        optimizer.step()
    assert parameter.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_every_optimizer_goes_downhill(name: str) -> None:
    parameter = one_parameter([3.0])
    optimizer = make_optimizer(Optimizer.model_validate({"name": name, "lr": 0.1}), [parameter])
    for _ in range(100):
        optimizer.zero_grad()
        (parameter**2).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert abs(parameter.item()) < 0.5


def test_parameters_that_do_not_train_are_left_out() -> None:
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    optimizer = make_optimizer(Optimizer(), [frozen, one_parameter([1.0])])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
