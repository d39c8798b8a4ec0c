from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from contracts.recipe import Augmentation
from services.training import batches
from services.training.batches import Batches, batch_bounds
from services.training.data.dataset import Split
from services.training.group import Group
from services.training.loader import Resident, Source, Streamed
from services.training.objective import SoftLabels

IMAGES = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None, None, None], (100, 4, 4, 1)).copy()
SPLIT = Split(images=IMAGES, labels=np.arange(100))
EVERYTHING: dict[str, Any] = {
    "flip_horizontal": True,
    "crop_padding": 1,
    "rotation": 20,
    "cutout": 2,
    "brightness": 0.2,
    "mixup": 0.2,
    "cutmix": 1.0,
}
Batch = tuple[torch.Tensor, torch.Tensor | SoftLabels]


def made(source: Source | None = None, *, seed: int = 0, size: int = 16, **changes: Any) -> Batches:
    source = source or Resident.copied(SPLIT, "cpu")
    return Batches(source, batch_size=size, augmentation=Augmentation(**changes), seed=seed)


def flat(batch: Batch) -> list[torch.Tensor]:
    pixels, truth = batch
    return [pixels, truth] if isinstance(truth, torch.Tensor) else [pixels, truth.first, truth.second, truth.share]


def same(first: list[Batch], second: list[Batch]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(flat(one), flat(other), strict=True))


@pytest.fixture(params=[1, 16 * 32, 1 << 20])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many values are augmented at once: a batch, two of them, all."""
    monkeypatch.setitem(batches._AHEAD, "cpu", request.param)
    return int(request.param)


@pytest.mark.usefixtures("ahead")
def test_every_image_comes_once_with_its_label_in_another_order_each_epoch() -> None:
    orders = []
    for epoch in (1, 2):
        found = list(made().epoch(epoch))
        assert [len(pixels) for pixels, _ in found] == [16] * 6 + [4]
        labels = torch.cat([truth for _, truth in found if isinstance(truth, torch.Tensor)])
        assert torch.equal(torch.cat([pixels[:, 0, 0, 0] for pixels, _ in found]), labels.to(torch.uint8))
        orders.append(labels.tolist())
    assert [sorted(order) for order in orders] == [list(range(100))] * 2
    assert orders[0] != orders[1]


@pytest.mark.usefixtures("ahead")
def test_an_epoch_goes_on_from_any_batch_as_if_it_had_never_been_left() -> None:
    whole = list(made(**EVERYTHING).epoch(3))
    for first in range(len(whole) + 1):
        assert same(list(made(**EVERYTHING).epoch(3, first=first)), whole[first:])


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("changes", [{}, {"rotation": 20, "crop_padding": 1}, EVERYTHING])
@pytest.mark.parametrize("workers", [2, 3])
def test_the_workers_of_a_group_have_the_rows_of_each_batch_of_one(workers: int, changes: dict[str, Any]) -> None:
    parts = []
    for rank in range(workers):
        group = Group()
        group.rank, group.size = rank, workers
        source = Resident.copied(SPLIT, "cpu")
        config = Augmentation(**changes)
        shared = Batches(source, batch_size=14, augmentation=config, seed=0, group=group)  # the last one has two images
        parts.append(list(shared.epoch(2, first=1)))
    whole = list(made(size=14, **changes).epoch(2, first=1))
    for batch, *own in zip(whole, *parts, strict=True):
        together = [torch.cat(columns) for columns in zip(*map(flat, own), strict=True)]
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(together, flat(batch), strict=True))


def test_seed_and_epoch_decide_the_batches() -> None:
    first = list(made(**EVERYTHING).epoch(1))
    assert same(first, list(made(**EVERYTHING).epoch(1)))
    assert not same(first, list(made(**EVERYTHING).epoch(2)))
    assert not same(first, list(made(seed=1, **EVERYTHING).epoch(1)))


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("changes", [{}, EVERYTHING])
@pytest.mark.parametrize("threads", [1, 4])
def test_images_that_are_read_ahead_give_the_same_batches_to_the_bit(threads: int, changes: dict[str, Any]) -> None:
    streamed = Streamed(SPLIT, "cpu", threads=threads)
    for first in (0, 3):
        assert same(list(made(streamed, **changes).epoch(2, first=first)), list(made(**changes).epoch(2, first=first)))


def test_images_are_mixed_within_their_batch() -> None:
    for pixels, truth in made(mixup=1.0).epoch(1):
        assert isinstance(truth, SoftLabels)
        assert sorted(truth.first.tolist()) == sorted(truth.second.tolist())
        value = truth.share * truth.first + (1 - truth.share) * truth.second
        torch.testing.assert_close(pixels[:, 0, 0, 0], value)


def test_the_order_of_the_images_does_not_depend_on_the_augmentation() -> None:
    plain, changed = (list(batches.epoch(1)) for batches in (made(), made(rotation=20)))
    for (_, truth), (_, other) in zip(plain, changed, strict=True):
        assert isinstance(truth, torch.Tensor)
        assert isinstance(other, torch.Tensor)
        assert torch.equal(truth, other)


@pytest.mark.parametrize(
    ("images", "size", "bounds"),
    [(10, 4, [(0, 4), (4, 8), (8, 10)]), (9, 4, [(0, 4), (4, 9)]), (1, 4, [(0, 1)]), (3, 1, [(0, 1), (1, 2), (2, 3)])],
)
def test_no_image_is_left_alone_in_a_batch(images: int, size: int, bounds: list[tuple[int, int]]) -> None:
    assert batch_bounds(images, size) == bounds


@pytest.mark.gpu
def test_a_gpu_gets_the_same_batches_resident_and_streamed() -> None:
    sources = Resident.copied(SPLIT, "cuda"), Streamed(SPLIT, "cuda")
    first, second = (list(made(source, **EVERYTHING).epoch(1)) for source in sources)
    assert same(first, second)
