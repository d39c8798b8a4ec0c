from __future__ import annotations

import pytest
import torch
from torch import nn

from contracts.images import ImageSpec
from contracts.recipe import Block, Convnet, Head
from services.training.networks import build
from services.training.networks.pooling import MaxPool2d


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 8, 8), (2, 48, 7, 9), (1, 1, 2, 2)])
@pytest.mark.parametrize("size", [2, 3])
def test_values_and_gradients_are_those_of_torch_to_the_bit(
    size: int, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    if min(shape[2:]) < size:
        pytest.skip("no window fits")
    torch.manual_seed(0)
    # Rounded, so that many windows hold their largest value twice
    images = (torch.randn(shape) * 2).round().to(dtype).contiguous(memory_format=layout)
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    pooled, wanted = MaxPool2d(size)(ours), nn.MaxPool2d(size)(theirs)
    assert torch.equal(pooled, wanted)
    gradient = torch.randn_like(wanted)
    pooled.backward(gradient)
    wanted.backward(gradient)
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_a_gradient_in_another_order_of_memory_goes_to_the_same_places() -> None:
    images = torch.randn(2, 6, 4, 4).contiguous(memory_format=torch.channels_last)
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    weights = torch.randn(24)
    for layer, leaf in ((MaxPool2d(2), ours), (nn.MaxPool2d(2), theirs)):
        (layer(leaf).flatten(1) @ weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def test_in_evaluation_it_is_torch_s_own_layer() -> None:
    layer = MaxPool2d(2).eval()
    answer = layer(torch.randn(1, 1, 4, 4, requires_grad=True))
    assert "MaxPool2D" in type(answer.grad_fn).__name__


@pytest.mark.parametrize("norm_position", ["before_activation", "after_activation"])
def test_a_block_gives_the_same_in_training_whether_relu_comes_before_or_after_its_pooling(norm_position: str) -> None:
    block = Block.model_validate(
        {"filters": 6, "padding": "same", "repeat": 2, "norm": "batch", "norm_position": norm_position}
    )
    model = Convnet(blocks=(block, Block(filters=4)), head=Head(units=(8,)))
    torch.manual_seed(0)
    network = build(model, image=ImageSpec(height=13, width=12, channels=3), classes=4).train()
    images = torch.randn(5, 3, 13, 12)

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        network.zero_grad()
        answer = network(images)
        answer.square().sum().backward()
        return answer.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]

    answer, gradients = run()
    assert isinstance(network, nn.Sequential)
    for index, stage in enumerate(network):  # the same layers in the order in which they are written
        network[index] = nn.Sequential(*stage.children())
    wanted, wanted_gradients = run()
    assert torch.equal(answer, wanted)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted_gradients, strict=True))
