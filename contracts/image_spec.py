"""The tensor that a graph takes for one image, as data; `contracts.images` makes it.

A module of its own, so that recipes and bundles are read without waiting for numpy and Pillow.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Side = Annotated[int, Field(ge=1, le=4096)]


class ImageSpec(BaseModel):
    """The tensor that a graph takes for one image: uint8, shape (height, width, channels)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: Side
    """Rows of pixels."""
    width: Side
    """Columns of pixels."""
    channels: Literal[1, 3]
    """1 is grayscale (ITU-R 601 luma), 3 is RGB."""
    resize: Literal["stretch", "pad", "crop"] = "stretch"
    """How another size is brought to this one: `stretch` ignores the aspect ratio, `pad` keeps it and fills with the
    background, `crop` keeps it and cuts the middle. Always bilinear with antialiasing."""
    background: Annotated[int, Field(ge=0, le=255)] = 0
    """The value under transparent pixels and in the border that `pad` adds."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.height, self.width, self.channels)
