from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from contracts.images import ImageSpec
from contracts.recipe import Block, Convnet, Head
from services.training.inside import first_filters, look_inside, stages
from services.training.networks import ServedGraph, build


def graph_of(output: str = "softmax", **block: Any) -> ServedGraph:
    torch.manual_seed(0)
    blocks = tuple(Block(filters=n, padding="same", norm="batch", dropout=0.5, **block) for n in (4, 6))
    model = Convnet(blocks=blocks, head=Head.model_validate({"units": (8,), "output": output}))
    network = build(model, image=ImageSpec(height=12, width=8, channels=3), classes=2)
    return ServedGraph(network, output=output, mean=(0.5,) * 3, std=(0.2,) * 3)  # type: ignore[arg-type]


def images(n: int = 3, height: int = 12, width: int = 8) -> Any:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_the_activations_of_every_block_are_those_before_its_pooling() -> None:
    graph = graph_of(repeat=2)
    inside = look_inside(graph, images())
    assert {name: maps.shape for name, maps in inside.activations.items()} == {
        "block1": (3, 4, 12, 8),
        "block2": (3, 6, 6, 4),
    }
    graph.eval()
    with torch.no_grad():
        block: Any = graph.network.get_submodule("block1")
        expected = block[:6](graph.normalize(torch.from_numpy(images())))
    np.testing.assert_allclose(inside.activations["block1"], expected.numpy(), rtol=1e-5, atol=1e-6)
    assert (inside.activations["block1"] >= 0).all()


class InPlace(nn.Module):
    """Changes what its only stage has answered, as DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 4, 3))
        self.last = nn.Linear(4, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.block1(pixels)
        maps.relu_()
        logits: torch.Tensor = self.last(maps.mean(dim=(2, 3)))
        return logits


def test_what_works_in_place_behind_a_stage_changes_nothing_of_it() -> None:
    torch.manual_seed(0)
    graph = ServedGraph(InPlace(), output="softmax", mean=(0.5,) * 3, std=(0.2,) * 3)
    inside = look_inside(graph, images())
    maps = inside.activations["block1"]
    assert (maps < 0).any()
    # The gradient of a mean behind a ReLU: where the stage's answer was above zero, and nowhere else.
    last: Any = graph.network.get_submodule("last")
    weights = last.weight.detach().numpy()[inside.classes]
    scores = np.einsum("nk,nkhw->nhw", weights * (maps > 0).mean(axis=(2, 3)), maps).clip(0)
    cam = nn.functional.interpolate(torch.from_numpy(scores)[:, None], size=(12, 8), mode="bilinear")[:, 0].numpy()
    np.testing.assert_allclose(inside.cam, cam / cam.max(axis=(1, 2), keepdims=True), atol=1e-5)


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
def test_grad_cam_is_the_map_of_its_paper(output: str) -> None:
    graph = graph_of(output).eval()
    classes = np.array([0, 1, 1])
    inside = look_inside(graph, images(), classes=classes)
    for index, label in enumerate(classes):
        # By hand, an image at a time: cut the network at the last block's activation.
        pixels = graph.normalize(torch.from_numpy(images()[index : index + 1]))
        block1, block2, head = (graph.network.get_submodule(name) for name in ("block1", "block2", "head"))
        layers: Any = block2
        maps = layers[:3](block1(pixels)).detach().requires_grad_()
        logits = head(layers[3:](maps))
        score = logits[0, label] if output == "softmax" else logits[0, 0] * (1 if label == 1 else -1)
        score.backward()
        weights = maps.grad.mean(dim=(2, 3))
        cam = torch.einsum("bk,bkhw->bhw", weights, maps.detach()).relu()
        cam = nn.functional.interpolate(cam[:, None], size=(12, 8), mode="bilinear", align_corners=False)[0, 0]
        np.testing.assert_allclose(inside.cam[index], (cam / cam.max().clamp_min(1e-30)).numpy(), atol=1e-5)


def test_grad_cam_finds_the_only_place_that_matters() -> None:
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(conv.weight)
    dense = nn.Linear(1, 2, bias=False)
    nn.init.ones_(dense.weight)
    corner = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), dense)
    graph = ServedGraph(nn.Sequential(conv, corner), output="softmax", mean=(0.0,), std=(1.0,))
    image = np.zeros((1, 9, 9, 1), dtype=np.uint8)
    image[0, 2, 6] = 255
    cam = look_inside(graph, image).cam[0]
    assert np.unravel_index(cam.argmax(), cam.shape) == (2, 6)
    assert cam.max() == 1
    assert (cam > 0).sum() == 1


def test_the_predicted_class_is_explained_unless_another_is_named() -> None:
    graph = graph_of()
    inside = look_inside(graph, images())
    np.testing.assert_array_equal(inside.classes, inside.probabilities.argmax(axis=1))
    with torch.no_grad():
        np.testing.assert_allclose(inside.probabilities, graph.eval()(torch.from_numpy(images())), atol=1e-6)


def test_nothing_of_the_network_and_of_the_random_generators_is_touched() -> None:
    graph = graph_of().train()
    graph.network.get_submodule("block1").eval()
    modes = [module.training for module in graph.modules()]
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    generator = torch.get_rng_state()
    look_inside(graph, images())
    assert [module.training for module in graph.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in graph.parameters())
    assert not any(module._forward_hooks for module in graph.modules())


def test_a_frozen_network_is_explained_too_and_stays_frozen() -> None:
    graph = graph_of().requires_grad_(False)
    assert look_inside(graph, images()).cam.max() > 0
    assert not any(parameter.requires_grad for parameter in graph.parameters())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("resnet18", {"relu": 32, "layer1": 16, "layer2": 8, "layer3": 4, "layer4": 2}),
        ("squeezenet1_1", {"features.1": 31, "features.4": 15, "features.7": 7, "features.12": 3}),
        ("mobilenet_v3_small", None),
    ],
)
def test_a_backbone_has_a_stage_for_each_size_of_its_maps(name: str, sizes: dict[str, int] | None) -> None:
    zoo: Any = models
    network = zoo.get_model(name, weights=None)
    graph = ServedGraph(network, output="softmax", mean=(0.5,) * 3, std=(0.2,) * 3)
    inside = look_inside(graph, images(1, 64, 64))
    found = {stage: maps.shape[2] for stage, maps in inside.activations.items()}
    assert sizes is None or found == sizes
    assert sorted(set(found.values()), reverse=True) == list(found.values())
    assert inside.cam.shape == (1, 64, 64)


def test_the_first_filters_are_those_of_the_first_convolution() -> None:
    graph = graph_of()
    first: Any = graph.network.get_submodule("block1.conv1")
    np.testing.assert_array_equal(first_filters(graph.network), first.weight.detach().numpy())


def test_a_residual_block_is_seen_after_the_sum() -> None:
    block = nn.Sequential()
    block.add_module("residual", nn.Conv2d(3, 3, 1))
    block.add_module("pool", nn.MaxPool2d(2))
    network = nn.Sequential()
    network.add_module("block1", block)
    assert stages(network, torch.zeros(1, 3, 4, 4)) == {"block1": block.residual}
