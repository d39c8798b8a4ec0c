from __future__ import annotations

import pytest
import torch
from torch import nn

from services.training.networks import ServedGraph


def test_normalisation_is_x_over_255_minus_mean_over_deviation() -> None:
    graph = ServedGraph(nn.Flatten(), output="softmax", mean=(0.5, 0.25), std=(0.5, 2.0))
    images = torch.tensor([[[[255, 51]]]], dtype=torch.uint8)
    torch.testing.assert_close(graph.normalize(images), torch.tensor([[[[1.0]], [[-0.025]]]]))


def test_normalize_gives_nchw_in_channels_last_memory_without_a_copy_of_the_layout() -> None:
    graph = ServedGraph(nn.Identity(), output="softmax", mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = graph.normalize(torch.zeros(2, 5, 7, 3, dtype=torch.uint8))
    assert pixels.shape == (2, 3, 5, 7)
    assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_softmax_rows_sum_to_one() -> None:
    graph = ServedGraph(nn.Flatten(), output="softmax", mean=(0.0,), std=(1.0,))
    answers = graph(torch.randint(0, 256, (4, 2, 2, 1), dtype=torch.uint8))
    torch.testing.assert_close(answers.sum(1), torch.ones(4))


def test_one_sigmoid_unit_becomes_two_columns() -> None:
    graph = ServedGraph(nn.Flatten(), output="sigmoid", mean=(0.0,), std=(1.0,))
    answers = graph(torch.tensor([[[[0]]], [[[255]]]], dtype=torch.uint8))
    torch.testing.assert_close(answers, torch.tensor([[0.5, 0.5], [0.2689414, 0.7310586]]))


@pytest.mark.parametrize(("output", "units"), [("softmax", 5), ("sigmoid", 1)])
@pytest.mark.parametrize("temperature", [0.1, 0.8, 3.0])
def test_a_temperature_changes_how_sure_the_answer_is_and_never_the_answer(
    output: str, units: int, temperature: float
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, units))
    plain, served = (
        ServedGraph(network, output=output, mean=(0.5,) * 3, std=(0.5,) * 3, temperature=t)  # type: ignore[arg-type]
        for t in (1.0, temperature)
    )
    images = torch.randint(0, 256, (500, 2, 2, 3), dtype=torch.uint8)
    before, after = plain(images), served(images)
    assert torch.equal(before.argmax(1), after.argmax(1))
    sharper = after.max(1).values > before.max(1).values
    assert bool(sharper.all()) is (temperature < 1)


def test_the_temperature_divides_the_logits() -> None:
    graph = ServedGraph(nn.Identity(), output="softmax", mean=(0.0,), std=(1.0,), temperature=2.0)
    logits = torch.tensor([[1.0, 3.0, -2.0]])
    torch.testing.assert_close(graph.probabilities(logits), (logits / 2).softmax(1))
    graph.output = "sigmoid"
    torch.testing.assert_close(graph.probabilities(torch.tensor([[3.0]]))[:, 1], torch.tensor([1.5]).sigmoid())
