from __future__ import annotations

import pytest
import torch
from torch import nn

from services.training.networks.dropout import Dropout, kept


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 1 / 3, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_is_dropped_and_the_mean_stays(share: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    values = torch.ones(400_000, dtype=dtype)
    dropped = Dropout(share)(values)
    away = (dropped == 0).float().mean().item()
    deviation = (share * (1 - share) / len(values)) ** 0.5
    assert abs(away - share) < 5 * deviation
    # bfloat16 rounds the factor to 1 in 256, as it would any value
    assert dropped[dropped > 0].unique().item() == pytest.approx(
        1 / (1 - share), rel=1 / 256 if dtype.itemsize == 2 else 2e-4
    )


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_gradient_is_dropped_where_the_value_is(layout: torch.memory_format) -> None:
    torch.manual_seed(1)
    values = torch.rand(5, 7, 6, 3).add(1).contiguous(memory_format=layout).requires_grad_()
    dropped = Dropout(0.3)(values)
    assert dropped.is_contiguous(memory_format=layout)
    dropped.backward(torch.ones_like(dropped))
    assert values.grad is not None
    assert torch.allclose(values.grad, dropped.detach() / values.detach())
    assert 0 < (dropped == 0).sum() < dropped.numel()


def test_what_is_dropped_is_drawn_value_by_value() -> None:
    torch.manual_seed(2)
    rounds = torch.stack(
        [kept((1003,), 0.5, dtype=torch.float32, order=torch.contiguous_format)[0] for _ in range(400)]
    )
    means = rounds.mean(0)
    assert (means - 0.5).abs().max() < 5 * (0.25 / 400) ** 0.5  # no place is favoured, the last ones neither
    neighbours = (rounds[:, 1:] == rounds[:, :-1]).float().mean(0)
    assert (neighbours - 0.5).abs().max() < 5 * (0.25 / 400) ** 0.5


def test_the_same_seed_drops_the_same() -> None:
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        answers.append(Dropout(0.4)(torch.ones(50, 50)))
    assert torch.equal(*answers)
    assert not torch.equal(answers[0], Dropout(0.4)(torch.ones(50, 50)))


def test_values_that_do_not_lie_side_by_side_are_dropped_too() -> None:
    torch.manual_seed(4)
    values = torch.ones(64, 128)[:, ::2]
    dropped = Dropout(0.5)(values)
    assert dropped.shape == values.shape
    assert 0.45 < (dropped == 0).float().mean() < 0.55


@pytest.mark.parametrize("share", [0.0, 1e-9, 1.0])
def test_nothing_and_everything_are_torch_s(share: float) -> None:
    values = torch.rand(20, 20) + 1
    assert torch.equal(Dropout(share)(values), nn.Dropout(share)(values))


def test_in_evaluation_nothing_is_dropped() -> None:
    values = torch.rand(4, 4)
    assert Dropout(0.5).eval()(values) is values
