"""Pictures of every kind, made for the tests of the decode path."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from contracts.errors import ImageError
from contracts.images import ImageSpec, decode

# Four different corners, a different height and width: no flip or turn of it looks like another.
PATTERN = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10


def spec_of(height: int = 6, width: int = 4, channels: Literal[1, 3] = 1, **options: Any) -> ImageSpec:
    return ImageSpec(height=height, width=width, channels=channels, **options)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def gray(pattern: NDArray[np.uint8] = PATTERN) -> Image.Image:
    return Image.fromarray(pattern)


def rgb() -> NDArray[np.uint8]:
    return np.stack([PATTERN, 255 - PATTERN, PATTERN // 2], axis=-1)


def outcome(data: bytes, spec: ImageSpec) -> str:
    """What becomes of hostile bytes; any error that is not an ImageError comes out and fails the test."""
    try:
        array = decode(data, spec, max_pixels=1_000_000)  # so that a damaged header cannot ask for gigabytes
    except ImageError as error:
        return "more than one line" if "\n" in error.message else "refused"
    return "image" if array.shape == spec.shape and array.dtype == np.uint8 else "another tensor"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")
