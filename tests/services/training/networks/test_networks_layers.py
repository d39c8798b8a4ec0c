from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from contracts.errors import RecipeError
from contracts.images import ImageSpec
from contracts.recipe import Backbone, Block, Convnet, Head
from services.training.networks import ServedGraph, build, count_parameters
from services.training.networks.layers import head_of, keras_names, parameters_of

RGB32 = ImageSpec(height=32, width=32, channels=3)
DENSE = Head(units=(256,), output="sigmoid")


def on_meta(name: str = "vgg16", **parts: Any) -> nn.Module:
    with torch.device("meta"):
        return build(Backbone.model_validate({"name": name, "head": DENSE, **parts}), image=RGB32, classes=2)


@pytest.mark.parametrize(
    ("parts", "trainable"),
    [
        ({}, 14_846_273),
        ({"frozen": ["base"]}, 131_585),
        ({"trainable_from": "head"}, 131_585),
        ({"trainable_from": "block3_conv1"}, 14_586_113),
        ({"trainable_from": "block3"}, 14_586_113),
        ({"trainable_from": "features.10"}, 14_586_113),
        ({"frozen": ["block1", "block2"]}, 14_586_113),
        ({"frozen": ["features.0", "features.2", "features.5", "features.7"]}, 14_586_113),
    ],
)
def test_vgg16_with_the_courses_head_trains_what_the_recipe_says(parts: dict[str, Any], trainable: int) -> None:
    assert count_parameters(on_meta(**parts)) == (14_846_273, trainable)


def test_260160_parameters_stand_before_block_3() -> None:
    counts = count_parameters(on_meta(trainable_from="block3_conv1"))
    assert counts.total - counts.trainable == 260_160


def test_keras_names_of_vgg16_are_its_five_blocks() -> None:
    names = keras_names(on_meta())
    assert names["block1_conv1"] == ["features.0"]
    assert names["block3_conv1"] == ["features.10"]
    assert names["block5_conv3"] == ["features.28"]
    assert names["block5_pool"] == ["features.30"]
    assert names["block2"] == [f"features.{index}" for index in range(5, 10)]
    assert sum("_conv" in name for name in names) == 13


def test_a_name_means_the_layer_and_what_is_in_it_and_not_names_that_begin_alike() -> None:
    network = on_meta()
    assert parameters_of(network, ["features.1"], key="k") == set()
    assert parameters_of(network, ["features.2"], key="k") == {"features.2.weight", "features.2.bias"}


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"trainable_from": "block9"}, r"model\.trainable_from 'block9' is not a layer .*block5"),
        ({"frozen": ["features.99"]}, r"model\.frozen 'features\.99' is not a layer .*features\.9"),
        ({"frozen": ["xyz"]}, r"'xyz' .*its parts are base, head, features, avgpool, classifier"),
        ({"frozen": ["base", "head"]}, "leave something to train"),
    ],
)
def test_an_unknown_layer_is_refused_with_the_nearest_names(parts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        on_meta(**parts)


@pytest.mark.parametrize(("name", "head"), [("vgg16", "classifier.6"), ("resnet18", "fc"), ("vit_b_16", "heads.head")])
def test_a_linear_head_is_the_last_layer_alone(name: str, head: str) -> None:
    with torch.device("meta"):
        image = ImageSpec(height=224, width=224, channels=3)
        assert head_of(build(Backbone(name=name), image=image, classes=2)) == head


def test_the_head_of_dense_layers_is_all_of_them() -> None:
    assert head_of(on_meta()) == "classifier"
    assert head_of(build(Convnet(blocks=(Block(filters=4),)), image=RGB32, classes=2)) == "head"


def test_batchnorm_of_held_layers_stays_in_eval_mode_and_keeps_its_statistics() -> None:
    network = build(Backbone(name="resnet18", trainable_from="layer4"), image=RGB32, classes=2)
    graph = ServedGraph(network, output="softmax", mean=(0.0,) * 3, std=(1.0,) * 3).train()
    held, trained = network.get_submodule("layer3.0.bn1"), network.get_submodule("layer4.0.bn1")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(graph.normalize(torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)))
    assert (held.training, trained.training) == (False, True)
    after = network.state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("layer4.") for name in changed)
    assert not copy.deepcopy(graph).train().network.get_submodule("bn1").training


def test_nothing_is_recorded_for_the_backward_pass_in_front_of_the_first_trained_layer() -> None:
    network = build(Backbone(name="resnet18", trainable_from="layer4"), image=RGB32, classes=2)
    recorded: dict[str, bool] = {}
    for name in ("layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda _, __, answer, name=name: recorded.update({name: answer.requires_grad})
        )
    network(torch.zeros(2, 3, 32, 32))
    assert recorded == {"layer3": False, "layer4": True}
