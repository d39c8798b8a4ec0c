from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from services.training.objective import SoftLabels, loss_and_correct

FIRST, SECOND = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 1, 0, 1])
SHARE = torch.tensor([0.7, 0.2, 0.4, 1.0])
LOGITS = torch.tensor([[2.0, 0, 0], [0, 1, 0], [3, 0, 1], [0, 2, 1]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_soft_labels_is_the_cross_entropy_with_the_mixed_distribution(smoothing: float) -> None:
    distribution = SHARE[:, None] * F.one_hot(FIRST, 3) + (1 - SHARE[:, None]) * F.one_hot(SECOND, 3)
    wanted = F.cross_entropy(LOGITS, distribution, label_smoothing=smoothing)
    loss, _ = loss_and_correct(LOGITS, SoftLabels(FIRST, SECOND, SHARE), output="softmax", label_smoothing=smoothing)
    torch.testing.assert_close(loss, wanted)


def test_the_loss_of_one_sigmoid_unit_is_that_of_the_mixed_target() -> None:
    first, second = torch.tensor([1, 0, 1]), torch.tensor([0, 0, 1])
    share = torch.tensor([0.25, 0.6, 0.5])
    logits = torch.tensor([[0.3], [-2.0], [1.0]])
    wanted = F.binary_cross_entropy_with_logits(logits[:, 0], torch.tensor([0.25, 0.0, 1.0]))
    loss, right = loss_and_correct(logits, SoftLabels(first, second, share), output="sigmoid")
    torch.testing.assert_close(loss, wanted)
    assert int(right) == 2  # the first image is mostly class 0


def test_right_is_counted_against_the_dominant_label() -> None:
    soft = SoftLabels(FIRST, SECOND, SHARE)
    assert soft.dominant.tolist() == [0, 1, 0, 2]
    assert int(loss_and_correct(LOGITS, soft, output="softmax")[1]) == 3


def test_a_share_of_one_is_a_hard_label() -> None:
    soft = loss_and_correct(LOGITS, SoftLabels(FIRST, SECOND, torch.ones(4)), output="softmax", label_smoothing=0.1)
    hard = loss_and_correct(LOGITS, FIRST, output="softmax", label_smoothing=0.1)
    torch.testing.assert_close(soft, hard)
