from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from services.training.low_weights import LowWeights


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        held=nn.Conv2d(3, 4, 3),
        norm=nn.BatchNorm2d(4),
        conv=nn.Conv2d(4, 4, 3, bias=False),
        flat=nn.Flatten(),
        first=nn.Linear(16, 16),
        second=nn.Linear(16, 16),
        unused=nn.Identity(),
    )
    made = nn.Sequential(layers)
    made.get_submodule("second").weight = made.get_submodule("first").weight
    for parameter in made.get_submodule("held").parameters():
        parameter.requires_grad_(False)
    made.get_submodule("unused").aside = nn.Linear(2, 2)
    return made.to(memory_format=torch.channels_last)


def cast(made: nn.Module, values: torch.Tensor, *, low: LowWeights | None = None) -> None:
    """Forward and back under autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        if low is None:
            answer = made(values)
        else:
            with low.in_place():
                answer = made(values)
    answer.float().square().sum().backward()
    if low is not None:
        low.hand_over()


def test_gradients_are_those_of_autocast_to_the_bit() -> None:
    ours, theirs = network(), network()
    low, values = LowWeights(ours, torch.bfloat16), torch.randn(2, 3, 6, 6)
    for _ in range(2):  # what one step leaves is no part of the next one
        for made in (ours, theirs):
            made.zero_grad()
        cast(ours, values, low=low)
        cast(theirs, values)
        for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            if other.grad is None:
                assert mine.grad is None, name
            else:
                assert mine.grad is not None, name
                assert mine.grad.dtype == torch.float32
                assert mine.grad.stride() == other.grad.stride()
                if name == "first.weight":  # two gradients are added, here in bf16
                    torch.testing.assert_close(
                        mine.grad, other.grad, rtol=1e-2, atol=1e-2 * other.grad.abs().max().item()
                    )
                else:
                    assert torch.equal(mine.grad, other.grad), name


def test_outside_a_forward_pass_the_network_has_its_own_weights() -> None:
    made = network()
    before = dict(made.named_parameters())
    low = LowWeights(made, torch.bfloat16)
    with low.in_place():
        inside = dict(made.named_parameters())
    lower = {name for name in inside if inside[name].dtype == torch.bfloat16}
    assert lower == {name for name in before if not name.startswith("norm")}
    assert not inside["held.weight"].requires_grad
    assert all(made.get_parameter(name) is parameter for name, parameter in before.items())


def test_changed_weights_are_copied_again() -> None:
    made, values = network(), torch.randn(2, 3, 6, 6)
    low = LowWeights(made, torch.bfloat16)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    low.refresh()
    other = copy.deepcopy(made)
    cast(made, values, low=low)
    cast(other, values)
    gradients = [network.get_parameter("conv.weight").grad for network in (made, other)]
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])


def test_a_network_whose_weights_are_all_held_has_nothing_to_hand_over() -> None:
    made = nn.Sequential(nn.Conv2d(3, 4, 3)).requires_grad_(requires_grad=False)
    low = LowWeights(made, torch.bfloat16)
    low.hand_over()
    low.refresh()
    assert made[0].weight.grad is None


def test_after_an_error_it_has_its_own_weights_too() -> None:
    made = network()
    low = LowWeights(made, torch.bfloat16)
    with pytest.raises(RuntimeError), low.in_place():
        made(torch.randn(2, 5, 6, 6))
    assert all(parameter.dtype == torch.float32 for parameter in made.parameters())
