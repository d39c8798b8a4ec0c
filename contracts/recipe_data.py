"""The parts of a recipe about the images: which they are, how they are split and scaled, how they are changed."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contracts.image_spec import ImageSpec
from contracts.recipe_part import Count, Fraction, Name, Part, Positive


class Normalize(Part):
    """x/255, minus the mean, over the deviation; one value a channel, on the scale 0-1."""

    mean: tuple[float, ...]
    std: tuple[Positive, ...]


class Data(Part):
    """The images, how they are split, and how their values are scaled."""

    dataset: Literal["digits", "mnist", "fashion", "cifar10", "folder"]
    """`digits` is embedded; `folder` reads class/*.jpg|png…, optionally under train/, val/ and test/."""
    path: Name | None = None
    """The directory of a `folder` data set; relative paths are taken from the working directory."""
    image: ImageSpec
    """The size that the network takes; images of another size are brought to it when they are decoded."""
    classes: tuple[Name, ...] | None = None
    """Only these classes, in this order; null takes all."""
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The fraction of the training images that is held out for validation (stratified, seeded)."""
    test: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The fraction that is held out for the test where the data set brings no test split of its own."""
    limit: Count | None = None
    """Fit on at most this many training images (stratified, by `split_seed`), for a trial; null takes all of them."""
    split_seed: int = 0
    """The seed of the splits; apart from `fit.seed`, so that runs with other seeds share their test images."""
    on_bad_image: Literal["skip", "fail"] = "skip"
    """What a file that is not a still image does to a `folder`: it is named and left out, or it is fatal."""
    on_overlap: Literal["warn", "drop", "fail"] = "warn"
    """What identical images in train and test do: they are counted, dropped from train, or fatal."""
    normalize: Literal["auto", "unit", "standard"] | Normalize = "auto"
    """`unit` divides by 255; `standard` also takes the training images' mean and deviation per channel away; `auto`
    is what pretrained weights were fitted with, and `unit` where there are none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.path is not None) != (self.dataset == "folder"):
            what = "needs data.path" if self.dataset == "folder" else "takes no data.path"
            raise ValueError(f"dataset {self.dataset!r} {what}")
        if self.classes is not None and (len(self.classes) < 2 or len(set(self.classes)) < len(self.classes)):
            raise ValueError(f"data.classes {list(self.classes)} must name at least two different classes")
        return self


class Augmentation(Part):
    """Random changes of the training images, drawn per image, on the device. All off by default."""

    flip_horizontal: bool = False
    flip_vertical: bool = False
    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Pixels added on each side before a crop of the original size is cut at random."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Degrees: the angle is drawn from [-rotation, rotation]."""
    shift: Fraction = 0.0
    """Fraction of the side: each axis moves by up to this."""
    shear: Annotated[float, Field(ge=0, le=45)] = 0.0
    """Degrees, as Keras' shear_range: the angle is drawn from [-shear, shear]."""
    zoom: Fraction = 0.0
    """Each axis is scaled by a factor from [1 - zoom, 1 + zoom]."""
    fill: Literal["nearest", "zeros", "reflect", "constant"] = "nearest"
    """What stands outside the image: its edge, zeros, its mirror image, or `fill_value`."""
    fill_value: Annotated[int, Field(ge=0, le=255)] = 0
    """Of fill `constant`, in every channel."""
    cutout: Annotated[int, Field(ge=0)] = 0
    """The side of a square that is set to zero, in pixels."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The values are multiplied by a factor from [1 - brightness, 1 + brightness]; likewise …"""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    """… the distance from the image's mean gray …"""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """… and the distance from each pixel's own gray."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The hue turns by up to this share of the colour circle."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha: images and labels are mixed with another one's by a share drawn from Beta(alpha, alpha); 0 is off."""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """Alpha: a box of another image is set in, of a share likewise drawn. With mixup too, each image takes one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.fill_value and self.fill != "constant":
            raise ValueError("augmentation.fill_value needs augmentation.fill 'constant'")
        return self

    @property
    def any(self) -> bool:
        return bool(self.model_dump(exclude_defaults=True, exclude={"fill", "fill_value"}))

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with others, and their labels with them."""
        return bool(self.mixup or self.cutmix)
