"""The courses' worked examples of convolution, folding and pooling, by the layers that the networks are made of.

Each is computed by a network of `services.training.networks` with the example's weights and by loops of plain Python,
and both are compared with the figures of the lesson.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from scipy import signal
from torch import Tensor, nn
from torch.nn import functional as F

from contracts.image_spec import ImageSpec
from contracts.recipe import Convnet
from services.training.networks import build

Plane = list[list[Fraction]]

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
NINE: Plane = [[Fraction(3 * row + column + 1) for column in range(3)] for row in range(3)]  # [[1, 2, 3], … 9]]
KERNEL: Plane = [[HALF, THIRD], [THIRD, HALF]]
CORNER: Plane = [[Fraction(value) for value in row] for row in ([1, 2], [3, 4])]
"""A kernel that flipping changes; the lesson's own is the same read backwards."""


def correlate(image: Plane, kernel: Plane) -> Plane:
    """The kernel laid on every place where it fits whole: what deep learning calls a convolution."""
    size = len(kernel)
    places = range(len(image) - size + 1)
    return [
        [
            sum((kernel[i][j] * image[y + i][x + j] for i in range(size) for j in range(size)), Fraction(0))
            for x in places
        ]
        for y in places
    ]


def fold(image: Plane, kernel: Plane) -> Plane:
    """Folding, the convolution of mathematics: every pixel spreads the kernel, and what meets is summed."""
    size = len(image) + len(kernel) - 1
    total = [[Fraction(0)] * size for _ in range(size)]
    for y, row in enumerate(image):
        for x, value in enumerate(row):
            for i, weights in enumerate(kernel):
                for j, weight in enumerate(weights):
                    total[y + i][x + j] += weight * value
    return total


def flipped(kernel: Plane) -> Plane:
    return [row[::-1] for row in kernel[::-1]]


def padded(image: Plane, by: int) -> Plane:
    width = len(image[0]) + 2 * by
    empty = [[Fraction(0)] * width for _ in range(by)]
    return [*empty, *([Fraction(0)] * by + row + [Fraction(0)] * by for row in image), *empty]


def pooled(image: Plane, size: int) -> Plane:
    """The largest value of every window, windows side by side."""
    steps = range(0, len(image), size)
    return [[max(image[y + i][x + j] for i in range(size) for j in range(size)) for x in steps] for y in steps]


def tensor(*planes: Plane) -> Tensor:
    """(1, channels, height, width)."""
    return torch.tensor([[[[float(value) for value in row] for row in plane] for plane in planes]])


def block(*, channels: int, side: int, **settings: Any) -> nn.Module:
    """The layers of a network's first block, of one filter, as the recipes' networks have them."""
    model = Convnet.model_validate({"blocks": [{"filters": 1, "bias": False, "pool": "none", **settings}]})
    image = ImageSpec.model_validate({"height": side, "width": side, "channels": channels})
    return build(model, image=image, classes=2).get_submodule("block1")


def convolve(image: Tensor, kernel: Plane, **settings: Any) -> Tensor:
    layers = block(channels=image.shape[1], side=image.shape[2], kernel=len(kernel), **settings)
    convolution = layers.get_submodule("conv1")
    assert isinstance(convolution, nn.Conv2d)
    with torch.no_grad():
        convolution.weight.copy_(tensor(kernel).expand_as(convolution.weight))
        result: Tensor = layers(image)  # the values are positive, so the block's ReLU leaves them
    return result


def test_the_kernel_of_halves_and_thirds_over_one_to_nine() -> None:
    by_hand = correlate(NINE, KERNEL)
    assert by_hand == [[5, Fraction(20, 3)], [10, Fraction(35, 3)]]
    torch.testing.assert_close(convolve(tensor(NINE), KERNEL), tensor(by_hand))


@pytest.mark.parametrize("kernel", [KERNEL, CORNER])
def test_folding_is_the_convolution_of_the_padded_image_with_the_flipped_kernel(kernel: Plane) -> None:
    by_hand = fold(NINE, kernel)
    assert by_hand == correlate(padded(NINE, 1), flipped(kernel))
    torch.testing.assert_close(convolve(tensor(padded(NINE, 1)), flipped(kernel)), tensor(by_hand))
    # scipy's and torch's own words for it: "full" convolution, transposed convolution
    planes = (tensor(plane)[0, 0].numpy() for plane in (NINE, kernel))
    scipys = signal.convolve2d(*planes, mode="full")  # type: ignore[attr-defined]
    torch.testing.assert_close(tensor(by_hand)[0, 0], torch.from_numpy(scipys))
    torch.testing.assert_close(F.conv_transpose2d(tensor(NINE), tensor(kernel)), tensor(by_hand))


def test_a_layer_does_not_flip_its_kernel_and_the_lessons_kernel_hides_it() -> None:
    inner = [row[1:3] for row in fold(NINE, CORNER)[1:3]]
    assert inner != correlate(NINE, CORNER)
    torch.testing.assert_close(convolve(tensor(NINE), CORNER), tensor(correlate(NINE, CORNER)))
    assert flipped(KERNEL) == KERNEL
    assert [row[1:3] for row in fold(NINE, KERNEL)[1:3]] == correlate(NINE, KERNEL)


def test_a_filter_sums_over_the_channels() -> None:
    planes: list[Plane] = [
        [[Fraction(4 * c + 1), Fraction(4 * c + 2)], [Fraction(4 * c + 3), Fraction(4 * c + 4)]] for c in range(3)
    ]
    one: Plane = [[Fraction(1)]]
    by_hand = [
        [sum((correlate(plane, one)[y][x] for plane in planes), Fraction(0)) for x in range(2)] for y in range(2)
    ]
    assert by_hand == [[15, 18], [21, 24]]
    torch.testing.assert_close(convolve(tensor(*planes), one), tensor(by_hand))


def test_max_pooling_of_four_by_four() -> None:
    rows = ([1, 6, 2, 9], [3, 4, 5, 0], [8, 2, 7, 1], [0, 5, 3, 6])
    image: Plane = [[Fraction(value) for value in row] for row in rows]
    assert pooled(image, 2) == [[6, 9], [8, 7]]
    torch.testing.assert_close(convolve(tensor(image), [[Fraction(1)]], pool="max"), tensor(pooled(image, 2)))
