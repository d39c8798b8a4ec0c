from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchvision.transforms.v2 import functional

from contracts.recipe import Augmentation
from services.training.augment.geometry import affine, compose, crop, cutout, draw_affine, flip

reference: Any = functional


def batch(n: int = 64, height: int = 12, width: int = 12, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, height, width, channels), dtype=torch.uint8, generator=generator)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def keras(
    image: NDArray[np.uint8], *, angle: float, down: float, right: float, shear: float, zoom_y: float, zoom_x: float,
    mode: str, value: float = 0.0,
) -> NDArray[np.float64]:  # fmt: skip
    """rotation @ shift @ shear @ zoom around the middle, on (row, column), as Keras' apply_affine_transform has it."""
    turn, skew = math.radians(angle), math.radians(shear)
    rotation = np.array([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
    shift = np.array([[1, 0, down], [0, 1, right], [0, 0, 1]])
    shearing = np.array([[1, -math.sin(skew), 0], [0, math.cos(skew), 0], [0, 0, 1]])
    zooming = np.diag([zoom_y, zoom_x, 1])
    matrix = rotation @ shift @ shearing @ zooming
    middle = (np.array(image.shape[:2]) - 1) / 2
    offset = matrix[:2, :2] @ -middle + matrix[:2, 2] + middle
    planes = [
        ndimage.affine_transform(  # type: ignore[attr-defined]
            image[..., channel].astype(float), matrix[:2, :2], offset, order=1, mode=mode, cval=value
        )
        for channel in range(image.shape[2])
    ]
    return np.stack(planes, axis=-1)


@pytest.mark.parametrize(("height", "width"), [(15, 15), (11, 21)])
@pytest.mark.parametrize(
    ("fill", "mode", "value"),
    [
        ("nearest", "nearest", 0),
        ("zeros", "grid-constant", 0),
        ("reflect", "reflect", 0),
        ("constant", "grid-constant", 99),
    ],
)
def test_the_whole_composition_agrees_with_keras_on_scipy(
    height: int, width: int, fill: str, mode: str, value: int
) -> None:
    random = np.random.default_rng(3)
    n = 12
    images = batch(n, height, width, 2)
    drawn = {
        "angle": random.uniform(-40, 40, n),
        "down": random.uniform(-0.2, 0.2, n) * height,
        "right": random.uniform(-0.2, 0.2, n) * width,
        "shear": random.uniform(-30, 30, n),
        "zoom_y": random.uniform(0.8, 1.2, n),
        "zoom_x": random.uniform(0.8, 1.2, n),
    }
    tensors = {key: torch.tensor(values, dtype=torch.float32) for key, values in drawn.items()}
    maps = compose(**{**tensors, "angle": tensors["angle"].deg2rad(), "shear": tensors["shear"].deg2rad()})
    ours = affine(images, maps, fill, fill_value=value).numpy()
    for i, image in enumerate(images.numpy()):
        theirs = keras(image, **{key: values[i] for key, values in drawn.items()}, mode=mode, value=value)
        np.testing.assert_allclose(ours[i], theirs, atol=0.05)


@pytest.mark.parametrize("degrees", [30.0, -75.0])
def test_a_rotation_agrees_with_torchvision_which_turns_the_other_way(degrees: float) -> None:
    images = batch(3, 17, 17)
    zero, one = torch.zeros(3), torch.ones(3)
    ours = affine(images, compose(torch.full((3,), degrees).deg2rad(), zero, zero, zero, one, one), "zeros")
    theirs = reference.rotate(
        images.permute(0, 3, 1, 2).float(), -degrees, interpolation=reference.InterpolationMode.BILINEAR
    )
    inner = slice(5, 12)  # torchvision fades its fill in at the edge differently
    torch.testing.assert_close(ours[:, inner, inner], theirs.permute(0, 2, 3, 1)[:, inner, inner], atol=0.05, rtol=0)


def test_drawn_maps_stay_within_what_the_recipe_allows() -> None:
    maps = draw_affine(2000, Augmentation(shift=0.25), seeded(), height=20, width=40)
    torch.testing.assert_close(maps[:, :, :2], torch.eye(2).expand(2000, 2, 2))
    assert 9.9 < float(maps[:, 0, 2].abs().max()) <= 10  # a quarter of the columns
    assert 4.9 < float(maps[:, 1, 2].abs().max()) <= 5
    zoomed = draw_affine(2000, Augmentation(zoom=0.2), seeded())
    assert 0.8 <= float(zoomed[:, 0, 0].min()) < 0.81
    assert 1.19 < float(zoomed[:, 1, 1].max()) <= 1.2
    turned = draw_affine(2000, Augmentation(rotation=40), seeded())
    angles = torch.rad2deg(torch.atan2(turned[:, 0, 1], turned[:, 0, 0]))
    assert 39 < float(angles.abs().max()) <= 40.001
    sheared = draw_affine(2000, Augmentation(shear=10), seeded())
    assert 9.9 < float(torch.rad2deg(torch.asin(sheared[:, 1, 0].abs().max()))) <= 10.001


def test_flips_inside_an_affine_map_are_those_of_torchvision() -> None:
    images = batch(200)
    config = Augmentation(shift=1e-9, flip_horizontal=True, flip_vertical=True)
    changed = affine(images, draw_affine(200, config, seeded(), height=12, width=12), "nearest")
    planes = images.permute(0, 3, 1, 2)
    both = reference.vertical_flip(reference.horizontal_flip(planes))
    candidates = [planes, reference.horizontal_flip(planes), reference.vertical_flip(planes), both]
    same = torch.stack([(changed - one.permute(0, 2, 3, 1)).abs().amax((1, 2, 3)) < 0.05 for one in candidates])
    assert same.sum(0).tolist() == [1] * 200
    assert min(same.sum(1).tolist()) > 25  # each of the four, about as often


def test_the_chosen_images_are_flipped_as_torchvision_does() -> None:
    images, chosen = batch(4), torch.tensor([True, False, True, False])
    planes = images.permute(0, 3, 1, 2)
    across, down = flip(images, chosen, None), flip(images, None, chosen)
    torch.testing.assert_close(across[chosen], reference.horizontal_flip(planes)[chosen].permute(0, 2, 3, 1))
    torch.testing.assert_close(down[chosen], reference.vertical_flip(planes)[chosen].permute(0, 2, 3, 1))
    assert torch.equal(across[~chosen], images[~chosen])


@pytest.mark.parametrize(
    ("fill", "mode", "value"),
    [("nearest", "edge", 0), ("zeros", "constant", 0), ("reflect", "reflect", 0), ("constant", "constant", 7)],
)
def test_a_crop_is_one_window_of_the_image_as_torchvision_pads_it(fill: str, mode: str, value: int) -> None:
    images = batch(60)
    changed = crop(images, 3, fill, seeded(), fill_value=value)
    padded = reference.pad(images.permute(0, 3, 1, 2), [3], fill=value, padding_mode=mode).permute(0, 2, 3, 1)
    offsets = set()
    for before, after in zip(padded, changed, strict=True):
        found = [(y, x) for y in range(7) for x in range(7) if torch.equal(before[y : y + 12, x : x + 12], after)]
        assert len(found) == 1
        offsets.update(found)
    assert len(offsets) > 20  # drawn for each image, not for the batch
    assert changed.is_contiguous()


def test_a_cutout_sets_one_square_to_zero() -> None:
    images = torch.full((200, 16, 16, 1), 9, dtype=torch.uint8)
    changed = cutout(images, 4, seeded())
    removed = (changed == 0).flatten(1).sum(1)
    assert int(removed.max()) == 16
    assert int(removed.min()) >= 4  # a quarter of it, where its middle is in a corner
    assert changed.dtype == torch.uint8
    whole = changed[removed == 16][..., 0]
    for after in whole:
        y, x = (after == 0).nonzero().amin(0).tolist()
        erased = reference.erase(torch.full((1, 16, 16), 9, dtype=torch.uint8), y, x, 4, 4, torch.zeros(1, 1, 1))
        assert torch.equal(after, erased[0])
