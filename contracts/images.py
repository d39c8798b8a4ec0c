"""The image contract: bytes -> the uint8 tensor that every graph takes.

This is the only decode path. Folder data sets, evaluation and serving all go through `decode`, so a served prediction
cannot differ from a trained one by its preprocessing. Normalisation is not done here: it is a part of the graph.
"""

from __future__ import annotations

import io
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from contracts.errors import ImageError, NotAnImage, TooLarge
from contracts.image_spec import ImageSpec

__all__ = ["FORMATS", "MAX_PIXELS", "ImageSpec", "decode", "encode_png"]

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS: Final = 50_000_000
"""Most pixels (width x height) of an image, checked on its header, before anything is decoded."""

_STRIP: Final = 256
_ORIENTED: Final = frozenset({"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"})
"""What Pillow may find an orientation in. Without any of them nothing is looked for, and nothing copied."""

# What the first bytes of each format look like. The declared media type is never trusted.
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_MAGIC: Final = (b"\xff\xd8\xff", _PNG, b"BM", b"GIF87a", b"GIF89a")


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
        if not _ORIENTED.isdisjoint(image.info):
            ImageOps.exif_transpose(image, in_place=True)
        image = _to_mode(image, "L" if spec.channels == 1 else "RGB", spec.background)
        if image.size != (spec.width, spec.height):
            image = _resize(image, spec)
        array = np.frombuffer(image.tobytes(), dtype=np.uint8)
    # Pillow's plugins raise whatever their parsers meet in hostile bytes (struct.error, zlib.error, AttributeError, …).
    except Exception as error:
        raise ImageError(f"the image could not be decoded: {_sentence(error)}; send a complete image file.") from error
    return array.reshape(spec.shape)


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """The PNG of a uint8 tensor (height, width, channels); `decode` gives the same tensor back."""
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, format="PNG")
    return buffer.getvalue()


def _open(data: bytes, max_pixels: int) -> Image.Image:
    if not data:
        raise ImageError("the image is empty (0 bytes); send the bytes of an image file.")
    if not (data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")):  # RIFF may be sound or video
        raise NotAnImage(f"the bytes are not an image of a known format; send one of {', '.join(FORMATS)}.")
    try:
        # Image.open tries one format after the other, which is a quarter of the work for a tiny PNG.
        file = io.BytesIO(data)
        image = PngImageFile(file) if data.startswith(_PNG) else Image.open(file, formats=FORMATS)
        # MPO is what phones call a JPEG with a preview or a depth map behind it; its first frame is the photograph.
        animated = image.format != "MPO" and getattr(image, "is_animated", False)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the image has more pixels than the limit of {max_pixels:,}; send a smaller one.") from error
    except Exception as error:
        raise ImageError(f"the image's header could not be read: {_sentence(error)}; send a complete file.") from error
    if image.width * image.height > max_pixels:
        size = f"{image.width}x{image.height}"
        raise TooLarge(f"the image has {size} pixels, more than the limit of {max_pixels:,}; send a smaller one.")
    if animated:
        raise NotAnImage("the image is an animation; send a still image.")
    return image


def _to_mode(image: Image.Image, mode: Literal["L", "RGB"], background: int) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a sample: Pillow's own conversion clips at 255 instead of rescaling
        image = _eight_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (background, background, background, 255)), rgba)
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray samples over 257, rounded; in strips, since wide integers of a whole image would fill memory."""
    array = np.empty((image.height, image.width), dtype=np.uint8)
    for top in range(0, image.height, _STRIP):
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
        samples = np.asarray(strip, dtype=np.int32).clip(0, 65535)
        array[top : top + _STRIP] = (samples + 128) // 257  # 257 is odd, so no sample lies half way
    return Image.fromarray(array)


def _resize(image: Image.Image, spec: ImageSpec) -> Image.Image:
    size = (spec.width, spec.height)
    if spec.resize == "crop":
        return ImageOps.fit(image, size, method=Image.Resampling.BILINEAR)
    if spec.resize == "pad":
        scale = min(spec.width / image.width, spec.height / image.height)
        # At least one pixel: a photograph of 4000x1 is odd, not undecodable.
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        padded = Image.new(image.mode, size, spec.background if spec.channels == 1 else (spec.background,) * 3)
        corner = ((spec.width - inner[0]) // 2, (spec.height - inner[1]) // 2)
        padded.paste(image.resize(inner, Image.Resampling.BILINEAR), corner)
        return padded
    return image.resize(size, Image.Resampling.BILINEAR)


def _sentence(error: Exception) -> str:
    return (str(error).strip().rstrip(".").splitlines() or [type(error).__name__])[0][:200]
