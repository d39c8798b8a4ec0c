"""The layers of a group against torch's own on the whole batch."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from services.training.distributed.layers import JoinedBatchNorm, JoinedDropout, joined
from services.training.distributed.workers import Workers
from services.training.networks.dropout import Dropout
from tests.services.training.distributed.conftest import Together


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3))


def passed(layers: nn.Module, images: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The answers to a batch, the gradients of its images and of the parameters for a weighed sum, and the buffers."""
    images = images.clone().requires_grad_()
    torch.manual_seed(1)
    answers = layers(images)
    (answers * weights).sum().backward()
    assert images.grad is not None
    return answers.detach(), [images.grad, *(p.grad for p in layers.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("workers", "batch"), [(2, 7), (3, 2)])  # the second leaves one without a row
def test_answers_gradients_and_running_statistics_are_those_of_the_whole_batch(
    workers: int, batch: int, together: Together
) -> None:
    images = torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(2)) * 3 + 4
    images = images.contiguous(memory_format=torch.channels_last)
    weights = torch.randn(batch, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    alone = network().train()
    answers, gradients = passed(alone, images, weights)

    def job(group: Workers) -> Any:
        layers = network().train()
        group.begin_batch(batch)
        mine = slice(*group.rows)
        with joined(layers, group):
            own = passed(layers, images[mine], weights[mine])
        assert [type(layer) for layer in layers] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout]
        return *own, [buffer.clone() for buffer in layers.buffers()]

    parts = together(workers, job)
    close = functools.partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    close(torch.cat([part[0] for part in parts]), answers)
    close(torch.cat([part[1][0] for part in parts]), gradients[0])
    for index, whole in enumerate(gradients[1:], start=1):
        close(sum(part[1][index] for part in parts), whole)
    for part in parts:
        for mine, whole in zip(part[2], alone.buffers(), strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-5)


class Half:
    """The second of two workers, by itself: nothing is exchanged."""

    images, rows = 6, (3, 6)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        return values[None]


def test_dropout_takes_its_rows_of_the_mask_that_is_drawn_for_all() -> None:
    values = torch.ones(6, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(4)
    whole = nn.Dropout(0.4)(values)
    torch.manual_seed(4)
    assert torch.equal(JoinedDropout(0.4, Half())(values[3:]), whole[3:])
    paths = JoinedDropout(0.5, Half(), whole_rows=True)(torch.ones(3, 2, 2, 2))
    assert all(len(row.unique()) == 1 for row in paths)
    dropout = JoinedDropout(0.4, Half()).eval()
    assert dropout(values) is values


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_quick_dropout_takes_its_rows_of_one_workers_mask_too(layout: torch.memory_format) -> None:
    values = torch.rand(6, 4, 5, 5).add(1).contiguous(memory_format=layout)
    for share in (0.25, 0.4):
        torch.manual_seed(4)
        whole = Dropout(share)(values)
        torch.manual_seed(4)
        assert torch.equal(JoinedDropout(share, Half(), quick=True)(values[3:]), whole[3:])
    network = nn.Sequential(Dropout(0.3))
    with joined(network, Half()):
        torch.manual_seed(5)
        part = network(values[3:])
    torch.manual_seed(5)
    assert torch.equal(part, network(values)[3:])


def test_in_evaluation_the_running_statistics_count() -> None:
    layer = nn.BatchNorm2d(4)
    layer(torch.randn(8, 4, 3, 3) * 2 + 1)
    values = torch.randn(5, 4, 3, 3)
    mine = JoinedBatchNorm(copy.deepcopy(layer), Half()).eval()
    torch.testing.assert_close(mine(values), layer.eval()(values))


def test_one_value_a_channel_is_refused_as_torch_does() -> None:
    single = Half()
    single.images = 1
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        JoinedBatchNorm(nn.BatchNorm2d(4), single)(torch.randn(1, 4, 1, 1))
