from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from services.training.calibration import logits_of
from services.training.evaluate import batch_size, evaluate, predict
from services.training.loader import Resident
from services.training.networks import ServedGraph


class Watched(nn.Module):
    """A linear layer on the mean colour; notes how many images come at once."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.seen: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(images))
        logits: torch.Tensor = self.last(images.mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("shape", "cpu", "cuda"),
    [((28, 28, 1), 64, 512), ((96, 96, 3), 64, 512), ((224, 224, 3), 11, 94), ((5000, 5000, 3), 1, 1)],
)
def test_large_images_are_evaluated_few_at_a_time_and_fewer_on_the_cpu(
    shape: tuple[int, int, int], cpu: int, cuda: int
) -> None:
    assert (batch_size(shape, "cpu"), batch_size(shape, torch.device("cuda"))) == (cpu, cuda)


def test_every_image_counts_once_whatever_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Watched()
    graph = ServedGraph(network, output="softmax", mean=(0.5,) * 3, std=(0.2,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (7, 200, 200, 3), dtype=np.uint8)
    labels = torch.tensor([0, 1] * 3 + [0])
    whole = (
        predict(graph, images),
        logits_of(graph, images),
        evaluate(graph, Resident(torch.from_numpy(images), labels)),
    )
    assert set(network.seen) == {7}
    network.seen.clear()
    monkeypatch.setattr("services.training.evaluate._MOST", {"cpu": 4})
    monkeypatch.setattr("services.training.evaluate._VALUES", 300 * 300 * 3)
    few = predict(graph, images), logits_of(graph, images), evaluate(graph, Resident(torch.from_numpy(images), labels))
    assert network.seen == [2, 2, 2, 1] * 2 + [4, 3]
    np.testing.assert_allclose(few[0], whole[0], atol=1e-6)
    np.testing.assert_allclose(few[1], whole[1], atol=1e-5)
    assert few[2] == pytest.approx(whole[2], abs=1e-6)
