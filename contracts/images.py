"""The image contract: bytes -> the uint8 tensor that every graph takes.

This is the only decode path. Folder data sets, evaluation and serving all go through `decode`, so a served prediction
cannot differ from a trained one by its preprocessing. Normalisation is not done here: it is a part of the graph.
"""

from __future__ import annotations

import io
from typing import Annotated, Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field

from contracts.errors import ImageError, NotAnImage, TooLarge

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS: Final = 50_000_000
"""Most pixels (width x height) of an image, checked on its header, before anything is decoded."""

# What the first bytes of each format look like. The declared media type is never trusted.
_MAGIC: Final = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"GIF87a", b"GIF89a")

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


def decode(data: bytes, spec: ImageSpec, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode one still image to the tensor of `spec`.

    The format is found in the bytes. EXIF orientation is applied, CMYK becomes RGB, 16-bit samples are rescaled to 8,
    transparency is laid on `spec.background`.

    Returns:
        uint8, shape (height, width, channels), C-contiguous, values 0-255.

    Raises:
        NotAnImage: the bytes are none of `FORMATS`, or an animation.
        TooLarge: the header announces more than `max_pixels`.
        ImageError: empty, truncated or corrupt bytes.
    """
    image = _open(data, max_pixels)
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        image = _to_mode(image, "L" if spec.channels == 1 else "RGB", spec.background)
        if image.size != (spec.width, spec.height):
            image = _resize(image, spec)
        array = np.asarray(image, dtype=np.uint8)
    # Pillow's plugins raise whatever their parsers meet in hostile bytes; to the caller it is all one thing.
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError) as error:
        raise ImageError(f"the image could not be decoded: {_sentence(error)}; send a complete image file.") from error
    return np.ascontiguousarray(array.reshape(spec.shape))


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """The PNG of a uint8 tensor (height, width, channels); `decode` gives the same tensor back."""
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("the image is empty (0 bytes); send the bytes of an image file.")
    if not data.startswith(_MAGIC):
        raise NotAnImage(f"the bytes are not an image of a known format; send one of {', '.join(FORMATS)}.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image has more pixels than the limit of {max_pixels:,}; send a smaller one.") from error
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError) as error:
        raise ImageError(f"the image's header could not be read: {_sentence(error)}; send a complete file.") from error
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise TooLarge(f"the image has {size} pixels, more than the limit of {max_pixels:,}; send a smaller one.")
    if getattr(image, "n_frames", 1) > 1:
        raise NotAnImage(f"the image is an animation of {image.n_frames} frames; send a still image.")  # type: ignore[attr-defined]
    return image


def _to_mode(image: Image.Image, mode: Literal["L", "RGB"], background: int) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a sample: Pillow's own conversion clips at 255 instead of rescaling
        samples = np.asarray(image, dtype=np.int64).clip(0, 65535)
        image = Image.fromarray(np.rint(samples / 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (background, background, background, 255)), rgba)
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _resize(image: Image.Image, spec: ImageSpec) -> Image.Image:
    size = (spec.width, spec.height)
    if spec.resize == "crop":
        return ImageOps.fit(image, size, method=Image.Resampling.BILINEAR)
    if spec.resize == "pad":
        fill = spec.background if spec.channels == 1 else (spec.background,) * 3
        return ImageOps.pad(image, size, method=Image.Resampling.BILINEAR, color=fill)  # type: ignore[arg-type]
    return image.resize(size, Image.Resampling.BILINEAR)


def _sentence(error: Exception) -> str:
    return (str(error).strip().rstrip(".").splitlines() or [type(error).__name__])[0][:200]
