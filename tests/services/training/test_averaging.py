from __future__ import annotations

import copy

import torch
from torch import nn

from services.training.averaging import Average
from services.training.networks import ServedGraph


def graph() -> ServedGraph:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    return ServedGraph(network, output="softmax", mean=(0.0,), std=(1.0,))


def step(fitted: ServedGraph, seed: int) -> None:
    """Move every weight, and BatchNorm's statistics, as a step of a fit does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in fitted.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    fitted.train()
    fitted.network(torch.randn(5, 1, 4, 4, generator=generator))


def test_the_average_is_that_of_the_formula_for_weights_and_statistics() -> None:
    fitted = graph()
    average = Average(fitted, 0.3)
    wanted = {name: value.clone() for name, value in fitted.state_dict().items()}
    for number in range(1, 6):
        step(fitted, number)
        average.update()
        decay = min(0.3, (1 + number) / (10 + number))
        for name, value in fitted.state_dict().items():
            if value.is_floating_point():
                wanted[name] = decay * wanted[name] + (1 - decay) * value
    found = average.graph.state_dict()
    assert "network.1.running_var" in wanted
    for name, value in wanted.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)


def test_the_fitted_graph_is_left_alone_and_the_average_answers_in_eval_mode() -> None:
    fitted = graph().train()
    before = copy.deepcopy(fitted.state_dict())
    average = Average(fitted, 0.999)
    average.update()
    assert fitted.training
    assert not average.graph.training
    assert all(parameter.requires_grad for parameter in fitted.parameters())
    assert all(torch.equal(value, before[name]) for name, value in fitted.state_dict().items())


def test_the_first_steps_are_followed_at_once() -> None:
    fitted = graph()
    average = Average(fitted, 0.9999)
    for number in range(30):
        step(fitted, number)
        average.update()
    weight = average.graph.state_dict()["network.0.weight"]
    initial = graph().state_dict()["network.0.weight"]
    final = fitted.state_dict()["network.0.weight"]
    assert (weight - final).norm() < (weight - initial).norm()


def test_frozen_weights_are_not_averaged() -> None:
    fitted = graph()
    fitted.network[0].requires_grad_(False)  # type: ignore[index]
    average = Average(fitted, 0.5)
    step(fitted, 1)
    average.update()
    found, initial = average.graph.state_dict(), graph().state_dict()
    assert torch.equal(found["network.0.weight"], initial["network.0.weight"])
    assert not torch.equal(found["network.3.weight"], initial["network.3.weight"])
