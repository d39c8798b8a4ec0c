from __future__ import annotations

import pytest
import torch
from torch import nn

from contracts.errors import RecipeError
from contracts.images import ImageSpec
from contracts.recipe import Backbone, Block, Convnet, Head
from services.training.networks import build, count_parameters

GRAY28 = ImageSpec(height=28, width=28, channels=1)
RGB32 = ImageSpec(height=32, width=32, channels=3)
RGB64 = ImageSpec(height=64, width=64, channels=3)


def counted(model: Convnet, image: ImageSpec, classes: int) -> tuple[int, int]:
    with torch.device("meta"):
        counts = count_parameters(build(model, image=image, classes=classes))
    return counts.total, counts.trainable


def test_the_mnist_convnet_has_93322_parameters() -> None:
    blocks = (Block(filters=32), Block(filters=64), Block(filters=64, pool="none"))
    assert counted(Convnet(blocks=blocks, head=Head(units=(64,))), GRAY28, 10) == (93_322, 93_322)


def test_the_fashion_net_has_468586_parameters_of_which_468202_are_trainable() -> None:
    blocks = tuple(Block(filters=f, padding="same", repeat=2, norm="batch") for f in (32, 64))
    assert counted(Convnet(blocks=blocks, head=Head(units=(128,))), GRAY28, 10) == (468_586, 468_202)


def test_the_cifar10_net_has_17962_parameters() -> None:
    blocks = tuple(Block(filters=f, padding="same") for f in (8, 16))
    assert counted(Convnet(blocks=blocks, head=Head(units=(16,))), RGB32, 10) == (17_962, 17_962)


def test_the_deer_horse_net_has_684097_parameters_and_one_output() -> None:
    blocks = (Block(filters=32, padding="same"), Block(filters=64, padding="same"), Block(filters=128))
    model = Convnet(blocks=blocks, head=Head(units=(512,), output="sigmoid"))
    assert counted(model, RGB32, 2) == (684_097, 684_097)
    assert build(model, image=RGB32, classes=2)(torch.zeros(3, 3, 32, 32)).shape == (3, 1)


def test_the_computed_size_of_every_kind_of_block_is_the_size_that_torch_has() -> None:
    for kernel in (1, 2, 3, 5):
        for padding in ("same", "valid"):
            for stride in (1, 2):
                for pool in ("none", "max", "average"):
                    block = Block.model_validate(
                        {
                            "filters": 4,
                            "kernel": kernel,
                            "padding": padding,
                            "stride": stride,
                            "pool": pool,
                            "repeat": 2,
                        }
                    )
                    image = ImageSpec(height=97, width=110, channels=3)
                    network = build(Convnet(blocks=(block, block)), image=image, classes=3)
                    assert network(torch.zeros(2, 3, 97, 110)).shape == (2, 3)


def test_normalisation_stands_where_the_recipe_says() -> None:
    def order(position: str) -> list[str]:
        block = Block.model_validate({"filters": 4, "norm": "batch", "norm_position": position})
        network = build(Convnet(blocks=(block,)), image=GRAY28, classes=2)
        return [name for name, _ in network.get_submodule("block1").named_children()]

    assert order("before_activation") == ["conv1", "norm1", "relu1", "pool"]
    assert order("after_activation") == ["conv1", "relu1", "norm1", "pool"]


def test_a_residual_block_adds_its_input_before_it_pools() -> None:
    plain = Block(filters=3, padding="same", repeat=2, pool="none")
    summed = plain.model_copy(update={"residual": True, "pool": "max"})
    torch.manual_seed(0)
    branch = build(Convnet(blocks=(plain,)), image=RGB32, classes=2).get_submodule("block1")
    torch.manual_seed(0)
    block = build(Convnet(blocks=(summed,)), image=RGB32, classes=2).get_submodule("block1")
    pixels = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(block(pixels), nn.functional.max_pool2d(pixels + branch(pixels), 2))


def test_a_residual_block_of_other_channels_is_refused_with_the_number() -> None:
    blocks = (Block(filters=4), Block(filters=8, padding="same", residual=True))
    with pytest.raises(RecipeError, match=r"model\.blocks\.1: a residual block of 8 filters gets 4 channels"):
        build(Convnet(blocks=blocks), image=RGB32, classes=2)


def test_an_image_too_small_for_the_blocks_is_refused_with_the_block() -> None:
    with pytest.raises(RecipeError, match=r"model\.blocks\.1: an image of 8x8 is used up here"):
        build(Convnet(blocks=(Block(filters=4),) * 3), image=ImageSpec(height=8, width=8, channels=1), classes=2)


def test_one_sigmoid_unit_is_refused_for_three_classes() -> None:
    with pytest.raises(RecipeError, match="the data has 3"):
        build(Convnet(blocks=(Block(filters=4),), head=Head(output="sigmoid")), image=GRAY28, classes=3)


def test_glorot_uniform_keeps_within_its_bound_and_zeroes_the_biases() -> None:
    network = build(
        Convnet(blocks=(Block(filters=8),), init="glorot_uniform", head=Head(units=(16,))), image=GRAY28, classes=10
    )
    dense = network.get_submodule("head.output")
    assert isinstance(dense, nn.Linear)
    bound = (6 / (16 + 10)) ** 0.5
    assert 0.8 * bound < float(dense.weight.detach().abs().max()) <= bound
    assert not dense.bias.any()


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "googlenet", "vit_b_16"])
def test_a_backbone_of_torchvision_has_one_logit_a_class(name: str) -> None:
    with torch.device("meta"):
        network = build(Backbone(name=name), image=ImageSpec(height=224, width=224, channels=3), classes=7)
        assert network(torch.zeros(2, 3, 224, 224)).shape == (2, 7)


def test_a_backbone_takes_grayscale_and_answers_as_for_the_same_image_in_rgb() -> None:
    torch.manual_seed(0)
    color = build(Backbone(name="resnet18"), image=RGB64, classes=3).eval()
    torch.manual_seed(0)
    gray = build(Backbone(name="resnet18"), image=ImageSpec(height=64, width=64, channels=1), classes=3).eval()
    gray.load_state_dict({k: v for k, v in color.state_dict().items() if k != "conv1.weight"}, strict=False)
    image = torch.rand(2, 1, 64, 64)
    torch.testing.assert_close(gray(image), color(image.expand(-1, 3, -1, -1)), atol=1e-4, rtol=1e-4)


def test_an_unknown_backbone_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(RecipeError, match=r"'resnet-18' is not a classification network of torchvision.*resnet18"):
        build(Backbone(name="resnet-18"), image=RGB64, classes=3)


@pytest.mark.parametrize("name", ["vit_b_16", "alexnet", "inception_v3"])
def test_a_backbone_that_takes_no_images_of_this_size_is_refused_with_the_key_to_change(name: str) -> None:
    with (
        torch.device("meta"),
        pytest.raises(RecipeError, match=rf"'{name}' takes no images of 32x32 .*data.image.height"),
    ):
        build(Backbone(name=name), image=RGB32, classes=2)


def test_the_check_of_the_size_leaves_the_network_as_it_was() -> None:
    network = build(Backbone(name="resnet18"), image=RGB32, classes=2)
    assert network.training
    assert {parameter.device.type for parameter in network.parameters()} == {"cpu"}
    assert int(network.get_buffer("bn1.num_batches_tracked")) == 0
