from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from contracts.errors import RecipeError
from contracts.images import ImageSpec
from contracts.recipe import Block, Convnet, Group, Optimizer
from services.training.networks import build
from services.training.optimizers import make_optimizer, parameter_groups


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


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("rmsprop", torch.optim.RMSprop),
    ],
)
def test_every_optimizer_steps_as_torchs_own_and_takes_over_its_state(name: str, torchs: Any) -> None:
    config = Optimizer.model_validate({"name": name, "lr": 0.1} | ({"momentum": 0.5} if "a" not in name else {}))
    ours, theirs = one_parameter([5.0, -3.0]), one_parameter([5.0, -3.0])
    mine = make_optimizer(config, [ours])
    left_out = ("params", "decoupled_weight_decay")  # the latter is what makes an AdamW of an Adam
    other = torchs([theirs], **{key: value for key, value in mine.param_groups[0].items() if key not in left_out})
    for number in range(6):
        for optimizer, parameter in ((mine, ours), (other, theirs)):
            optimizer.zero_grad()
            assert parameter.grad is None
            (parameter**2).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if number == 2:  # each goes on with the other's moments
            one, two = mine.state_dict(), other.state_dict()
            mine.load_state_dict({**one, "state": two["state"]})
            other.load_state_dict({**two, "state": one["state"]})
    assert torch.equal(ours, theirs)
    assert ours.requires_grad


def test_no_optimizer_imports_torchs_compiler() -> None:
    code = """
import sys, torch
from contracts.recipe import Optimizer
from services.training.optimizers import load_state, make_optimizer
for name, inside in (("sgd", 0), ("adam", 0), ("adamw", 0), ("rmsprop", 0), ("rmsprop", 1)):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer(Optimizer(name=name, epsilon_inside_sqrt=inside), [parameter])
    optimizer.zero_grad()
    parameter.sum().backward()
    optimizer.step()
    state = optimizer.state_dict()["state"].get(0, {})
    load_state(optimizer, {f"0.{key}": value for key, value in state.items() if value is not None}, {})
    optimizer.step()
print(*({"torch._dynamo", "sympy", "triton", "torchvision"} & set(sys.modules)))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


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


def two_blocks() -> nn.Module:
    torch.manual_seed(0)
    image = ImageSpec(height=8, width=8, channels=1)
    return build(Convnet(blocks=(Block(filters=4), Block(filters=3, pool="none"))), image=image, classes=2)


def test_layers_of_a_group_have_their_own_learning_rate_and_the_rest_the_recipes() -> None:
    config = Optimizer(lr=0.1, groups=(Group(layers=("block1",), lr=0.001), Group(layers=("head",), lr=0.2)))
    network = two_blocks()
    rest, first, head = make_optimizer(config, network).param_groups
    assert [group["lr"] for group in (rest, first, head)] == [0.1, 0.001, 0.2]
    assert [group["lr_scale"] for group in (rest, first, head)] == pytest.approx([1, 0.01, 2])
    assert [id(p) for p in first["params"]] == [id(p) for p in network.get_submodule("block1").parameters()]
    assert sum(len(group["params"]) for group in (rest, first, head)) == len(list(network.parameters()))


@pytest.mark.parametrize(
    ("name", "inside"), [("sgd", False), ("adam", False), ("adamw", False), ("rmsprop", False), ("rmsprop", True)]
)
def test_every_optimizer_moves_a_group_by_its_own_learning_rate(name: str, inside: bool) -> None:
    groups = (Group(layers=("base",), lr=1e-6),)
    config = Optimizer.model_validate({"name": name, "lr": 0.1, "groups": groups, "epsilon_inside_sqrt": inside})
    network = two_blocks()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = make_optimizer(config, network)
    network(torch.rand(16, 1, 8, 8)).square().sum().backward()
    optimizer.step()
    moved = {key: float((value - before[key]).abs().max()) for key, value in network.state_dict().items()}
    assert 0 < moved["block1.conv1.weight"] < 1e-3 * moved["head.output.weight"]


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ((("blok1",),), r"optimizer\.groups\.0\.layers 'blok1' is not a layer .*block1"),
        ((("block1",), ("base",)), r"optimizer\.groups\.1\.layers: 'base' is in another group"),
        ((("block2.relu1",),), r"optimizer\.groups\.0\.layers: 'block2\.relu1' has nothing to train"),
    ],
)
def test_a_group_of_layers_that_cannot_be_one_is_refused(layers: tuple[tuple[str, ...], ...], sentence: str) -> None:
    groups = tuple(Group(layers=each, lr=0.1) for each in layers)
    with pytest.raises(RecipeError, match=sentence):
        parameter_groups(Optimizer(groups=groups), two_blocks())


def keras(parameters: list[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    return make_optimizer(Optimizer(name="rmsprop", lr=0.01, epsilon_inside_sqrt=True, **options), parameters)


def several() -> list[nn.Parameter]:
    torch.manual_seed(0)
    channels_last = torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last)
    return [nn.Parameter(values) for values in (channels_last, torch.randn(4), torch.randn(6, 5).t(), torch.ones(()))]


def take(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for place, parameter in enumerate(parameters):
            torch.manual_seed(step * 10 + place)
            parameter.grad = torch.randn(parameter.shape)  # in the order of its axes, whatever the parameter's
        optimizer.step()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_keras_rmsprop_moves_each_of_many_parameters_as_if_it_were_alone(momentum: float) -> None:
    together = several()
    take(keras(together, momentum=momentum), together, range(3))
    for place, alone in enumerate(several()):
        optimizer = keras([alone], momentum=momentum)
        for step in range(3):
            torch.manual_seed(step * 10 + place)
            alone.grad = torch.randn(alone.shape)
            optimizer.step()
        torch.testing.assert_close(together[place], alone, rtol=1e-6, atol=1e-7)


def test_keras_rmsprop_goes_on_from_loaded_state_to_the_bit() -> None:
    whole, parts = several(), several()
    take(keras(whole, momentum=0.5), whole, range(6))
    first = keras(parts, momentum=0.5)
    take(first, parts, range(3))
    kept = [parameter.detach().clone() for parameter in parts]
    second = keras(parts, momentum=0.5)
    take(second, parts, range(3, 4))  # it has state of its own, which goes
    with torch.no_grad():
        for parameter, value in zip(parts, kept, strict=True):
            parameter.copy_(value)
    second.load_state_dict(first.state_dict())
    take(second, parts, range(3, 6))
    for wanted, found in zip(whole, parts, strict=True):
        assert torch.equal(wanted, found)


def test_keras_rmsprop_leaves_a_parameter_without_a_gradient_and_its_state() -> None:
    parameters = several()
    optimizer = keras(parameters)
    take(optimizer, parameters, range(2))
    before, state = parameters[1].detach().clone(), optimizer.state[parameters[1]]["mean_square"].clone()
    parameters[1].grad = None
    take(optimizer, [parameters[0], *parameters[2:]], range(2, 4))
    assert torch.equal(parameters[1], before)
    take(optimizer, parameters, range(4, 5))
    assert not torch.equal(parameters[1], before)
    torch.manual_seed(41)
    wanted = 0.9 * state + 0.1 * torch.randn(4).square()
    torch.testing.assert_close(optimizer.state[parameters[1]]["mean_square"], wanted)
