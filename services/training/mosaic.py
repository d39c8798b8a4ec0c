"""Small pictures of tiles, by numpy and Pillow alone: they are made while a fit runs, so they must be cheap."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GAP: Final = 2
"""White pixels between tiles."""


def activations(
    images: NDArray[np.uint8], maps: NDArray[np.float32], *, channels: int = 12, side: int = 56
) -> NDArray[np.uint8]:
    """A row an image: the image, then its first channels; bright is strong.

    Each channel has one scale over all images, so a row can be compared with the others; a dead channel is dark. A map
    takes the image's tile, whose proportions it need not have: convolutions without padding take as much from both
    sides.

    Args:
        images: uint8 (n, height, width, 1 or 3).
        maps: (n, channels, height, width).
        channels: How many of them.
        side: The longer one of a tile, in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    scaled = _each_channel(maps[:, :channels])
    rows = []
    for image, row in zip(images, scaled, strict=True):
        first = tile(image, side)
        rows.append([first, *(_resized(colour(channel, "viridis"), first.shape[1], first.shape[0]) for channel in row)])
    return grid(rows)


def channels(maps: NDArray[np.float32], *, most: int = 64, columns: int = 8, side: int = 72) -> NDArray[np.uint8]:
    """The channels (channels, height, width) of one image as uint8 (height, width, 3), in rows."""
    tiles = [tile(colour(channel, "viridis"), side) for channel in _each_channel(maps[None, :most])[0]]
    return grid([tiles[start : start + columns] for start in range(0, len(tiles), columns)])


def cams(images: NDArray[np.uint8], cam: NDArray[np.float32], *, side: int = 96) -> NDArray[np.uint8]:
    """Images (n, height, width, channels) above, and the same under their Grad-CAM (n, height, width) below."""
    above = [tile(image, side) for image in images]
    return grid([above, [overlay(image, heat, side) for image, heat in zip(images, cam, strict=True)]])


def overlay(image: NDArray[np.uint8], heat: NDArray[np.float32], side: int) -> NDArray[np.uint8]:
    """An image under its heat (height, width), 0-1: where there is none, the image shows as it is."""
    below = tile(image, side)
    smooth = Image.fromarray(heat).resize((below.shape[1], below.shape[0]), Image.Resampling.BILINEAR)
    share = np.asarray(smooth)[..., None].clip(0, 1)
    # The image is dimmed where no heat lies, so that heat is seen on white ground too.
    blended = below * 0.75 * (1 - share) + colour(share[..., 0], "inferno") * share
    shown: NDArray[np.uint8] = blended.round().astype(np.uint8)
    return shown


def filters(weights: NDArray[np.float32], *, most: int = 64, columns: int = 8, side: int = 40) -> NDArray[np.uint8]:
    """Filters (filters, channels, height, width): in colours where they see colours, else blue below 0, red above."""
    tiles = []
    for weight in weights[:most]:
        limit = max(float(np.abs(weight).max()), 1e-12)
        shade = (weight / limit + 1) / 2
        picture = (shade.transpose(1, 2, 0) * 255).round() if len(weight) == 3 else colour(shade[0], "RdBu_r")
        tiles.append(tile(picture.astype(np.uint8), side))
    return grid([tiles[start : start + columns] for start in range(0, len(tiles), columns)])


def tile(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image (height, width, 1 or 3) whose longer side is `side`, in RGB; enlarged pixels stay squares."""
    height, width, _ = image.shape
    scale = side / max(height, width)
    return _resized(image, max(round(width * scale), 1), max(round(height * scale), 1))


def _resized(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).convert("RGB")
    enlarged = width >= picture.width and height >= picture.height
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.BOX
    return np.asarray(picture.resize((width, height), how))


def grid(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Tiles of one size (height, width, 3) in rows on white; a row may be shorter than the first."""
    height, width, _ = rows[0][0].shape
    shape = (len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 3)
    canvas = np.full(shape, 255, np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def colour(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Values (height, width), 0-1, in a matplotlib colour map: uint8 (height, width, 3)."""
    return _table(name)[(values.clip(0, 1) * 255).round().astype(np.uint8)]


@cache
def _table(name: str) -> NDArray[np.uint8]:
    from matplotlib import colormaps

    found: NDArray[np.uint8] = colormaps[name](np.arange(256), bytes=True)[:, :3]
    return found


def _each_channel(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, channels, height, width), each channel from 0 to 1 over all images."""
    low = maps.min(axis=(0, 2, 3), keepdims=True)
    span = maps.max(axis=(0, 2, 3), keepdims=True) - low
    scaled: NDArray[np.float32] = (maps - low) / np.where(span > 0, span, 1)
    return scaled
