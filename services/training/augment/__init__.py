"""Augmentation on the device that holds the images: vectorised, with parameters drawn for every image.

Geometry, colour and mixing each draw their parameters in one function and apply them in another, so that what they do
with known parameters can be checked against another implementation.
"""

from __future__ import annotations

from torch import Tensor

from contracts.recipe import Augmentation
from services.training.augment.color import draw_jitter, jitter
from services.training.augment.draws import Randomness
from services.training.augment.geometry import affine, crop, cutout, draw_affine, draw_flips, flip
from services.training.augment.mixing import mix

__all__ = ["affine", "augment", "draw_affine", "mix"]


def augment(images: Tensor, config: Augmentation, generator: Randomness) -> Tensor:
    """Change images at random, each by itself; see `mix` for what mixes them with each other.

    Args:
        images: uint8 (batch, height, width, channels), values 0-255.
        config: What may change, and by how much.
        generator: Source of randomness, on the images' device.

    Returns:
        (batch, height, width, channels), values 0-255; uint8, or float32 where the images were resampled or recoloured.
    """
    if config.crop_padding:
        images = crop(images, config.crop_padding, config.fill, generator, fill_value=config.fill_value)
    if config.rotation or config.shift or config.shear or config.zoom:
        # The flips are in the map: they cost nothing beside the resampling.
        maps = draw_affine(images.shape[0], config, generator, height=images.shape[1], width=images.shape[2])
        images = affine(images, maps, config.fill, fill_value=config.fill_value)
    else:
        images = flip(images, *draw_flips(images.shape[0], config, generator))
    if config.brightness or config.contrast or config.saturation or config.hue:
        images = jitter(images, draw_jitter(images.shape[0], config, generator))
    if config.cutout:
        images = cutout(images, config.cutout, generator)
    return images
