"""Where the pixels go: flips, crops, cutout, and one affine map for rotation, shift, shear and zoom.

The affine map follows Keras' ImageDataGenerator, which the source courses use: rotation · shift · shear · zoom around
the middle of the image, shear in degrees, and an image is resampled once (bilinear).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from contracts.recipe import Augmentation
from services.training.augment.draws import Randomness, integers, uniform

# Keras' (scipy's) `reflect` repeats the edge: d c b a | a b c d. So does torch's `reflection` without aligned corners.
_FILL = {"nearest": "border", "zeros": "zeros", "reflect": "reflection", "constant": "zeros"}


def draw_affine(batch: int, config: Augmentation, generator: Randomness, *, height: int = 2, width: int = 2) -> Tensor:
    """Draw one affine map an image, flips included.

    Returns:
        float32 (batch, 2, 3): the map from a pixel (x, y, 1) of the result to the place (x, y) in the source where it
        is read, in pixels from the middle of the image.
    """
    drawn = 2 * uniform(batch, generator, each=(6,)) - 1
    parameters = torch.stack(
        (
            drawn[0] * math.radians(config.rotation),
            drawn[1] * (config.shift * height),
            drawn[2] * (config.shift * width),
            drawn[3] * math.radians(config.shear),
            1 + drawn[4] * config.zoom,
            1 + drawn[5] * config.zoom,
        )
    )
    maps = compose(*parameters)
    for axis, chosen in enumerate(draw_flips(batch, config, generator)):
        if chosen is not None:  # after the rest, as Keras has it: the result's axis runs the other way
            maps[:, :, axis] *= torch.where(chosen, -1.0, 1.0)[:, None]
    return maps


def compose(angle: Tensor, down: Tensor, right: Tensor, shear: Tensor, zoom_y: Tensor, zoom_x: Tensor) -> Tensor:
    """rotation · shift · shear · zoom, multiplied out; each of (batch,), angles in radians, shifts in pixels.

    Keras' matrices act on (row, column): [[cos a, -sin a], [sin a, cos a]], [[1, -sin s], [0, cos s]] and the diagonal
    of the zooms; the map returned, (batch, 2, 3), acts on (x, y).
    """
    cosine, sine = angle.cos(), angle.sin()
    x = ((angle + shear).cos() * zoom_x, sine * zoom_y, sine * down + cosine * right)
    y = (-(angle + shear).sin() * zoom_x, cosine * zoom_y, cosine * down - sine * right)
    return torch.stack((*x, *y), dim=1).view(-1, 2, 3)


def affine(images: Tensor, maps: Tensor, fill: str, *, fill_value: int = 0) -> Tensor:
    """Resample a batch (batch, height, width, channels) through `maps`, as `draw_affine` gives them; float32 0-255."""
    height, width = images.shape[1:3]
    # grid_sample's axes run from -1 to 1, edge to edge
    maps = maps * torch.tensor([[2 / width], [2 / height]], device=maps.device)
    x = torch.arange(width, device=maps.device) - (width - 1) / 2
    y = torch.arange(height, device=maps.device) - (height - 1) / 2
    # Per column plus per row: a seventh of the time of affine_grid, which multiplies a matrix for every pixel
    columns = maps[:, None, None, :, 0] * x[:, None]
    rows = maps[:, None, None, :, 1] * y[:, None, None] + maps[:, None, None, :, 2]
    planes = images.permute(0, 3, 1, 2).float()
    if fill_value:
        planes = planes - fill_value
    sampled = F.grid_sample(planes, columns + rows, mode="bilinear", padding_mode=_FILL[fill], align_corners=False)
    return (sampled + fill_value if fill_value else sampled).permute(0, 2, 3, 1)


def draw_flips(batch: int, config: Augmentation, generator: Randomness) -> tuple[Tensor | None, Tensor | None]:
    """Which images are flipped, bool (batch,): horizontally, and vertically; None where the recipe flips none."""

    def half() -> Tensor:
        return uniform(batch, generator) < 0.5

    return half() if config.flip_horizontal else None, half() if config.flip_vertical else None


def flip(images: Tensor, horizontal: Tensor | None, vertical: Tensor | None) -> Tensor:
    """Flip the chosen images of a batch (batch, height, width, channels)."""
    for axis, chosen in ((2, horizontal), (1, vertical)):
        if chosen is not None:
            images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
    return images


def crop(images: Tensor, padding: int, fill: str, generator: Randomness, *, fill_value: int = 0) -> Tensor:
    """Pad on every side and cut the original size out at random; `reflect` does not repeat the edge, as in torch."""
    batch, height, width, _ = images.shape
    top, left = integers(2 * padding + 1, batch, generator, each=(2,))
    padded = _pad(images, padding, fill, fill_value)
    # A view, (batch, top, left, height, width, channels): every window there is, and only the chosen ones are copied
    windows = padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    return windows[torch.arange(batch, device=images.device), top, left]


def _pad(images: Tensor, padding: int, fill: str, fill_value: int) -> Tensor:
    if fill in ("zeros", "constant"):
        return F.pad(images, (0, 0, padding, padding, padding, padding), value=fill_value)
    for axis in (1, 2):
        size = images.shape[axis]
        index = torch.arange(-padding, size + padding, device=images.device)
        if fill == "reflect":
            index = (size - 1) - ((size - 1) - index.abs()).abs()
        images = images.index_select(axis, index.clamp(0, size - 1))
    return images


def cutout(images: Tensor, side: int, generator: Randomness) -> Tensor:
    """Set a square of each image to zero (DeVries and Taylor 2017)."""
    # Its middle is anywhere, so that a part of it may fall outside.
    batch, height, width, _ = images.shape
    middle_y = integers(height, batch, generator)[:, None]
    middle_x = integers(width, batch, generator)[:, None]
    top, left = middle_y - side // 2, middle_x - side // 2
    return images * ~box(height, width, top, top + side, left, left + side)


def box(height: int, width: int, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """bool (batch, height, width, 1): what lies in each image's box, from four bounds (batch, 1), ends excluded."""
    y, x = torch.arange(height, device=top.device), torch.arange(width, device=top.device)
    return (((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None, :])[..., None]
