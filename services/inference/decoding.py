"""Where an image is decoded: tiny ones at once, the others beside the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contracts import images
from contracts.errors import ImageError
from contracts.images import ImageSpec

# A hop to a thread and back costs about as much as decoding a 28 x 28 PNG. Both bounds are needed: the first keeps
# what a hostile file can inflate to small, the second what an honest one holds.
_INLINE_BYTES: Final = 4096
_INLINE_PIXELS: Final = 128 * 128
_PNG: Final = b"\x89PNG\r\n\x1a\n"


async def decode(
    files: list[bytes], spec: ImageSpec, *, max_pixels: int, pool: Executor, within_s: float
) -> NDArray[np.uint8]:
    """Decode all images of a request: uint8, (n, height, width, channels).

    Raises:
        ImageError, NotAnImage, TooLarge: of the first image that fails; among several its number is in the message.
        TimeoutError: not done within `within_s` seconds.
    """
    if len(files) == 1 and _tiny(files[0]):
        return images.decode(files[0], spec, max_pixels=max_pixels)[np.newaxis]
    # A late request leaves the pool's queue too: under overload, decoding for nobody would make the next late.
    async with asyncio.timeout(within_s):
        return await asyncio.get_running_loop().run_in_executor(pool, _decode_all, files, spec, max_pixels)


def _decode_all(files: list[bytes], spec: ImageSpec, max_pixels: int) -> NDArray[np.uint8]:
    batch = np.empty((len(files), *spec.shape), dtype=np.uint8)
    for index, data in enumerate(files):
        try:
            batch[index] = images.decode(data, spec, max_pixels=max_pixels)
        except ImageError as error:
            if len(files) == 1:
                raise
            raise type(error)(f"image {index} of {len(files)} (counted from 0): {error.message}") from error
    return batch


def _tiny(data: bytes) -> bool:
    """Whether the header of a small PNG announces few pixels; other formats hide their size deeper."""
    if len(data) > _INLINE_BYTES or len(data) < 24 or not data.startswith(_PNG):
        return False
    return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) <= _INLINE_PIXELS
