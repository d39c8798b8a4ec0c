"""Augmentation of a batch on the device that holds it: vectorised, with parameters drawn for every image.

Geometry follows Keras' ImageDataGenerator, which the source courses use: rotation, shift, shear and zoom are one affine
map around the middle of the image, composed in that order, so an image is resampled once (bilinear).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from contracts.recipe import Augmentation

_FILL = {"nearest": "border", "zeros": "zeros", "reflect": "reflection"}


def augment(images: Tensor, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Change a batch at random.

    Args:
        images: uint8 (batch, height, width, channels), values 0-255.
        config: What may change, and by how much.
        generator: Source of randomness, on the images' device.

    Returns:
        (batch, height, width, channels), values 0-255; uint8, or float32 where the images were resampled.
    """
    if config.crop_padding:
        images = _crop(images, config.crop_padding, config.fill, generator)
    if config.flip_horizontal:
        images = _flip(images, 2, generator)
    if config.flip_vertical:
        images = _flip(images, 1, generator)
    if config.rotation or config.shift or config.shear or config.zoom:
        images = affine(images, draw_affine(images.shape[0], config, generator), config.fill)
    if config.cutout:
        images = _cutout(images, config.cutout, generator)
    return images


def draw_affine(batch: int, config: Augmentation, generator: torch.Generator) -> Tensor:
    """Draw one affine map an image.

    Returns:
        float32 (batch, 2, 3): the map from a pixel of the result to the place in the source where it is read, in the
        coordinates of `torch.nn.functional.affine_grid` (both axes from -1 to 1).
    """
    angle = _uniform(batch, -config.rotation, config.rotation, generator) * (math.pi / 180)
    shear = _uniform(batch, -config.shear, config.shear, generator) * (math.pi / 180)
    shift = [2 * _uniform(batch, -config.shift, config.shift, generator) for _ in "xy"]  # a side is 2 units long
    zoom = [_uniform(batch, 1 - config.zoom, 1 + config.zoom, generator) for _ in "xy"]
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rotate = _matrix((angle.cos(), -angle.sin(), zero), (angle.sin(), angle.cos(), zero))
    move = _matrix((one, zero, shift[0]), (zero, one, shift[1]))
    skew = _matrix((one, -shear.sin(), zero), (zero, shear.cos(), zero))
    scale = _matrix((zoom[0], zero, zero), (zero, zoom[1], zero))
    return (rotate @ move @ skew @ scale)[:, :2]


def affine(images: Tensor, maps: Tensor, fill: str) -> Tensor:
    """Resample a batch (batch, height, width, channels) through `maps`, as `draw_affine` gives them; float32 0-255."""
    batch, height, width, channels = images.shape
    if height != width:  # on the -1..1 axes of a rectangle a rotation would shear; scale to pixels and back
        maps = maps.clone()
        maps[:, 0, 1] *= height / width
        maps[:, 1, 0] *= width / height
    grid = F.affine_grid(maps, [batch, channels, height, width], align_corners=False)
    planes = images.permute(0, 3, 1, 2).float()
    sampled = F.grid_sample(planes, grid, mode="bilinear", padding_mode=_FILL[fill], align_corners=False)
    return sampled.permute(0, 2, 3, 1)


def _flip(images: Tensor, axis: int, generator: torch.Generator) -> Tensor:
    chosen = torch.rand(images.shape[0], 1, 1, 1, generator=generator, device=images.device) < 0.5
    return torch.where(chosen, images.flip(axis), images)


def _crop(images: Tensor, padding: int, fill: str, generator: torch.Generator) -> Tensor:
    batch, height, width, _ = images.shape
    device = images.device
    offsets = torch.randint(-padding, padding + 1, (2, batch, 1), generator=generator, device=device)
    rows = torch.arange(height, device=device) + offsets[0]
    columns = torch.arange(width, device=device) + offsets[1]
    inside = (_inside(rows, height)[:, :, None] & _inside(columns, width)[:, None, :])[..., None]
    if fill == "reflect":
        rows, columns = _reflect(rows, height), _reflect(columns, width)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    cropped = images[torch.arange(batch, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped * inside if fill == "zeros" else cropped


def _inside(index: Tensor, size: int) -> Tensor:
    return (index >= 0) & (index < size)


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def _cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    # DeVries and Taylor 2017: the middle of the square is anywhere, so that a part of it may fall outside.
    batch, height, width, _ = images.shape
    device = images.device
    middle_y = torch.randint(height, (batch, 1), generator=generator, device=device)
    middle_x = torch.randint(width, (batch, 1), generator=generator, device=device)
    rows = _inside(torch.arange(height, device=device) - middle_y + side // 2, side)
    columns = _inside(torch.arange(width, device=device) - middle_x + side // 2, side)
    return images * ~(rows[:, :, None] & columns[:, None, :])[..., None]


def _uniform(batch: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, generator=generator, device=generator.device) * (high - low) + low


def _matrix(top: tuple[Tensor, ...], middle: tuple[Tensor, ...]) -> Tensor:
    zero = torch.zeros_like(top[0])
    bottom = (zero, zero, torch.ones_like(zero))
    return torch.stack([torch.stack(row, dim=1) for row in (top, middle, bottom)], dim=1)
