from __future__ import annotations

import torch
from torch import nn

from services.training.distributed.bucket import Bucket


def test_gradients_and_two_sums_are_added_up_in_one_tensor_and_lie_as_their_parameters_do() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(5, 2)).to(memory_format=torch.channels_last)
    held = network[2].bias
    held.requires_grad_(False)
    network(torch.randn(2, 3, 3, 3)).sum().backward()
    before = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    calls: list[torch.Size] = []

    def three_times(values: torch.Tensor) -> None:
        calls.append(values.shape)
        values.mul_(3)

    bucket = Bucket(network.parameters())
    for _ in range(2):
        sums = bucket.add(torch.tensor([0.5, 4.0]), three_times)
        assert sums.tolist() == [1.5, 12.0]
        for name, parameter in network.named_parameters():
            if name in before:
                assert parameter.grad is not None
                torch.testing.assert_close(parameter.grad, 3 * before[name])
                assert parameter.grad.stride() == parameter.stride()
        network.zero_grad(set_to_none=True)
        network(torch.randn(2, 3, 3, 3)).sum().backward()
        before = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    assert held.grad is None
    assert len(calls) == 2
