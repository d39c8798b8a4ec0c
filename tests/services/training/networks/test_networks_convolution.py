from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import nn

from services.training.networks import convolution
from services.training.networks.convolution import Conv2d

SMALL = [
    pytest.param((6, 16, 5, 5), {"kernel_size": 3}, id="3x3 positions"),
    pytest.param((6, 20, 4, 4), {"kernel_size": 3, "padding": 1}, id="padded"),
    pytest.param((1, 16, 5, 4), {"kernel_size": (3, 2), "padding": (0, 1), "bias": False}, id="oblong, no bias"),
    pytest.param((3, 32, 2, 2), {"kernel_size": 1}, id="no window"),
]


def both(shape: tuple[int, ...], options: dict[str, object], layout: torch.memory_format) -> list[list[torch.Tensor]]:
    """What a layer gives under autocast, and its gradients: ours, and torch's with the same weights."""
    answers = []
    for kind in (Conv2d, nn.Conv2d):
        torch.manual_seed(0)
        layer = kind(shape[1], 24, **options).to(memory_format=layout)  # type: ignore[arg-type]
        values = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = layer(values)
        answer.float().square().sum().backward()
        gradients = [values.grad, *(p.grad for p in layer.parameters())]
        assert all(gradient is not None for gradient in gradients)
        answers.append([answer.detach(), *(gradient for gradient in gradients if gradient is not None)])
    return answers


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("shape", "options"), SMALL)
def test_answers_are_torch_s_and_gradients_are_within_rounding(
    shape: tuple[int, ...], options: dict[str, object], layout: torch.memory_format
) -> None:
    with mock.patch.object(convolution, "_windows", wraps=convolution._windows) as windows:
        ours, theirs = both(shape, options, layout)
    assert windows.called
    assert torch.equal(ours[0], theirs[0])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert mine.dtype == other.dtype
        assert mine.shape == other.shape
        torch.testing.assert_close(mine, other, rtol=2e-2, atol=2e-2 * other.abs().max().item())


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param((2, 16, 9, 9), {"kernel_size": 3}, id="a large map"),
        pytest.param((2, 3, 5, 5), {"kernel_size": 3}, id="few channels"),
        pytest.param((2, 16, 7, 7), {"kernel_size": 3, "stride": 2}, id="strides"),
        pytest.param((2, 16, 7, 7), {"kernel_size": 3, "dilation": 2}, id="dilation"),
        pytest.param((2, 16, 5, 5), {"kernel_size": 3, "groups": 2}, id="groups"),
        pytest.param((2, 16, 4, 4), {"kernel_size": 3, "padding": "same"}, id="padding by name"),
        pytest.param((2, 16, 4, 4), {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, id="circular"),
    ],
)
def test_all_else_is_torch_s_own(shape: tuple[int, ...], options: dict[str, object]) -> None:
    with mock.patch.object(convolution, "_windows") as windows:
        ours, theirs = both(shape, options, torch.channels_last)
    assert not windows.called
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def test_in_full_precision_and_without_gradients_it_is_torch_s_own() -> None:
    layer, values = Conv2d(16, 8, 3), torch.randn(2, 16, 5, 5)
    with mock.patch.object(convolution, "_Convolved") as product:
        layer(values).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            layer(values)
        layer.requires_grad_(requires_grad=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer(values.clone().requires_grad_())
    assert not product.apply.called


def test_the_first_layer_needs_no_gradient_of_its_input() -> None:
    layer = Conv2d(16, 8, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(torch.randn(2, 16, 5, 5)).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.abs().sum() > 0
