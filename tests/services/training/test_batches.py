from __future__ import annotations

import pytest
import torch

from contracts.recipe import Augmentation
from services.training import batches
from services.training.objective import SoftLabels

IMAGES = torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(100, 4, 4, 1).contiguous()
LABELS = torch.arange(100)
ORDER = torch.randperm(100, generator=torch.Generator().manual_seed(0))
BOUNDS = [(start, min(start + 16, 100)) for start in range(0, 100, 16)]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("ahead", [1, 16 * 32, 1 << 20])
def test_every_batch_comes_once_in_order_however_many_are_made_at_once(
    ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batches._AHEAD, "cpu", ahead)
    found = list(batches.drawn(IMAGES, LABELS, ORDER, BOUNDS, Augmentation(), seeded()))
    assert [len(pixels) for pixels, _ in found] == [16] * 6 + [4]
    labels = [label for _, truth in found if isinstance(truth, torch.Tensor) for label in truth.tolist()]
    assert labels == ORDER.tolist()
    assert torch.cat([pixels[:, 0, 0, 0] for pixels, _ in found]).tolist() == labels


def test_images_are_mixed_within_their_batch() -> None:
    for pixels, truth in batches.drawn(IMAGES, LABELS, ORDER, BOUNDS, Augmentation(mixup=1.0), seeded()):
        assert isinstance(truth, SoftLabels)
        assert sorted(truth.first.tolist()) == sorted(truth.second.tolist())
        value = truth.share * truth.first + (1 - truth.share) * truth.second
        torch.testing.assert_close(pixels[:, 0, 0, 0], value)


def test_the_order_of_the_random_numbers_does_not_depend_on_who_asks() -> None:
    config = Augmentation(rotation=20, cutmix=1.0)
    first, second = (list(batches.drawn(IMAGES, LABELS, ORDER, BOUNDS, config, seeded())) for _ in "ab")
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
