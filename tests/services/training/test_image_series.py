from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from numpy.typing import NDArray

from contracts.images import ImageSpec
from contracts.recipe import Block, Convnet, Recipe
from services.training import tracking
from services.training.data.dataset import Split
from services.training.fit import fit
from services.training.image_series import ImageSeries, pictures, probes
from services.training.networks import ServedGraph, build
from services.training.progress import Progress
from tests.services.training.plans import cpu_plan


class Kept:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.images: dict[tuple[str, int], NDArray[np.uint8]] = {}

    def image(self, key: str, step: int, image: NDArray[np.uint8]) -> None:
        assert (key, step) not in self.images
        self.images[key, step] = image

    def epoch(self, step: int, metrics: dict[str, float]) -> None:
        """The metrics are not looked at."""


def split(n: int = 40, classes: int = 3) -> Split:
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    return Split(images=images, labels=np.arange(n, dtype=np.int64) % classes)


def graph_of() -> ServedGraph:
    torch.manual_seed(0)
    block = Block(filters=4, padding="same", norm="batch", dropout=0.3)
    network = build(Convnet(blocks=(block,)), image=ImageSpec(height=8, width=8, channels=1), classes=3)
    return ServedGraph(network, output="softmax", mean=(0.5,), std=(0.5,))


def test_epochs_that_are_powers_of_two_are_logged_and_others_when_told() -> None:
    log, graph = Kept(), graph_of()
    series = ImageSeries(log, split())
    for epoch in range(1, 12):
        series.watch(epoch, graph)
    series.log(11, graph)
    series.log(8, graph)  # logged already: a step has one image
    keys = {"activations-block1", "grad-cam", "filters"}
    assert set(log.images) == {(key, step) for key in keys for step in (1, 2, 4, 8, 11)}
    for image in log.images.values():
        assert image.dtype == np.uint8
        assert image.shape[2] == 3


@pytest.mark.parametrize(("height", "width"), [(21, 12), (12, 21)])
def test_images_that_are_not_square_have_their_pictures_too(height: int, width: int) -> None:
    blocks = (Block(filters=2), Block(filters=2, kernel=2, padding="same"))
    network = build(Convnet(blocks=blocks), image=ImageSpec(height=height, width=width, channels=3), classes=2)
    graph = ServedGraph(network, output="softmax", mean=(0.5,) * 3, std=(0.5,) * 3)
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    made = pictures(graph, images, np.array([0, 1, 0]))
    assert set(made) == {"activations-block1", "activations-block2", "grad-cam", "filters"}


def test_a_fit_that_is_watched_ends_in_the_same_weights(make_recipe: Any) -> None:
    recipe: Recipe = make_recipe(
        fit={"epochs": 4, "batch_size": 16, "precision": "fp32"},
        augmentation={"rotation": 10},
        optimizer={"lr": 0.01},
    )
    plan = cpu_plan(threads=torch.get_num_threads())

    def weights(**watching: Any) -> tuple[dict[str, torch.Tensor], list[float]]:
        graph = graph_of()
        torch.manual_seed(1)  # dropout
        result = fit(graph, split(), split(20), recipe, plan, log=Kept(), progress=Progress(show=False), **watching)
        return graph.state_dict(), [row["train/loss"] for row in result.history]

    plain, losses = weights()
    log = Kept()
    watched, watched_losses = weights(watch=ImageSeries(log, split()).watch)
    assert {step for _, step in log.images} == {1, 2, 4}
    assert losses == watched_losses
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


@pytest.mark.parametrize(("classes", "expected"), [(2, [0, 1, 0, 1]), (3, [0, 1, 2, 0]), (9, [0, 1, 2, 3])])
def test_the_probes_are_of_the_first_classes_and_always_the_same(classes: int, expected: list[int]) -> None:
    labels = split(40, classes).labels
    chosen = probes(labels)
    assert labels[chosen].tolist() == expected
    assert len(set(chosen.tolist())) == 4
    np.testing.assert_array_equal(probes(labels), chosen)


def test_there_are_no_more_probes_than_images() -> None:
    assert sorted(probes(np.array([0, 0, 1])).tolist()) == [0, 1, 2]


def test_mlflow_holds_an_image_for_each_key_and_step(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        series = ImageSeries(run, split())
        series.watch(1, graph_of())
        series.watch(2, graph_of())
    client = MlflowClient(embedded_tracking)
    names = [Path(item.path).name for item in client.list_artifacts(run.run_id, "images")]
    assert len([name for name in names if name.startswith("grad-cam+step+2+") and name.endswith(".png")]) == 1
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"
