from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2 as library

from contracts.recipe import Augmentation
from services.training.augment.geometry import box
from services.training.augment.mixing import cutmix, draw_boxes, draw_shares, mix, mixup

v2: Any = library
N = 400


def batch(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 10, 8, 3), dtype=torch.uint8, generator=generator)
    return images, torch.arange(n) % 5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mixup_of_a_known_share_is_torchvisions() -> None:
    images, labels = batch(6)
    planes = images.permute(0, 3, 1, 2).float()
    theirs = v2.MixUp(num_classes=5).transform(planes, {"labels": labels, "batch_size": 6, "lam": 0.3})
    ours = mixup(images, images.roll(1, 0), torch.full((6,), 0.3))
    torch.testing.assert_close(ours.permute(0, 3, 1, 2), theirs, atol=1e-3, rtol=0)


def test_cutmix_of_a_known_box_is_torchvisions() -> None:
    images, labels = batch(6)
    parameters = {"labels": labels, "batch_size": 6, "box": (2, 1, 5, 7), "lam_adjusted": 1 - 18 / 80}
    theirs = v2.CutMix(num_classes=5).transform(images.permute(0, 3, 1, 2), parameters)
    bounds = [torch.full((6, 1), value) for value in (1, 7, 2, 5)]
    ours = cutmix(images, images.roll(1, 0), box(10, 8, *bounds))
    assert torch.equal(ours.permute(0, 3, 1, 2), theirs)


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    drawn = draw_shares(20_000, alpha, seeded()).double().numpy()
    # A small alpha crowds at the ends, where float32 rounds up to 1.
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).statistic < 0.02  # type: ignore[attr-defined]


def test_a_box_takes_what_the_share_leaves_and_is_clipped_at_the_edge() -> None:
    inside = draw_boxes(torch.full((N,), 0.75), 40, 20, seeded())
    sizes = inside.sum((1, 2, 3))
    assert int(sizes.max()) == 20 * 10  # half of each side: a quarter of the area
    assert int(sizes.min()) < 150


def test_the_share_of_the_label_is_the_share_of_the_pixels() -> None:
    ones = torch.ones(N, 16, 16, 1, dtype=torch.uint8)
    ones[1::2] = 0  # each image's partner is of the other colour
    mixed, soft = mix(ones, torch.arange(N), Augmentation(cutmix=1.0), seeded())
    own = (mixed == ones).float().mean((1, 2, 3))
    torch.testing.assert_close(soft.share, own)
    assert mixed.dtype == torch.uint8
    assert torch.equal(soft.second, torch.arange(N).roll(1))


def test_with_both_each_image_is_mixed_in_one_of_the_two_ways() -> None:
    dark = torch.zeros(N, 16, 16, 1, dtype=torch.uint8)
    dark[::2] = 200
    mixed, soft = mix(dark, torch.arange(N), Augmentation(mixup=1.0, cutmix=1.0), seeded())
    blended = torch.tensor(
        [len(set(image.flatten().tolist())) == 1 and 0 < float(image[0, 0, 0]) < 200 for image in mixed]
    )
    assert 0.35 < float(blended.float().mean()) < 0.65
    own = 1 - (mixed - dark).abs().mean((1, 2, 3)) / 200
    torch.testing.assert_close(soft.share, own, atol=1e-4, rtol=1e-4)


def test_shares_are_drawn_for_each_image() -> None:
    images, labels = batch()
    assert len(set(mix(images, labels, Augmentation(mixup=1.0), seeded())[1].share.tolist())) > 300


def test_a_single_image_is_mixed_with_itself() -> None:
    images, labels = batch(1)
    mixed, _ = mix(images, labels, Augmentation(mixup=1.0), seeded())
    torch.testing.assert_close(mixed, images.float())
