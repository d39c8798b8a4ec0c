"""Where an image is decoded: tiny ones at once, the others beside the event loop."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contracts import images
from contracts.errors import ImageError, Overloaded, TooLarge
from contracts.images import ImageSpec

# A hop to a thread and back costs about as much as decoding a 28 x 28 PNG. Both bounds are needed: the first keeps
# what a hostile file can inflate to small, the second what an honest one holds.
_INLINE_BYTES: Final = 4096
_INLINE_PIXELS: Final = 128 * 128
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_NEWEST: Final = 0.2
"""The weight of the newest request in the mean seconds a file."""
_MARGIN: Final = 0.75
"""The part of its deadline that a request may be expected to wait: files differ."""


class Decoder:
    """A few threads that decode. `decode` belongs to the event loop."""

    def __init__(self, *, threads: int, max_pixels: int) -> None:
        self._threads = threads
        self._max_pixels = max_pixels
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._file_s = 0.0
        self.waiting = 0
        """Files in the pool: waiting for a thread, or in one."""

    def now(self, files: list[bytes], spec: ImageSpec) -> NDArray[np.uint8] | None:
        """The request's images where decoding them at once costs less than giving them away; None elsewhere.

        uint8, (1, height, width, channels).

        Raises:
            ImageError, NotAnImage: the image cannot be decoded.
        """
        if len(files) != 1 or not _tiny(files[0]):
            return None
        try:
            return images.decode(files[0], spec, max_pixels=min(self._max_pixels, _INLINE_PIXELS))[np.newaxis]
        except TooLarge:  # a header may follow that says otherwise than the first bytes
            return None

    def later(self, files: list[bytes], spec: ImageSpec, *, within_s: float) -> asyncio.Future[NDArray[np.uint8]]:
        """Decode all images of a request in the pool: a future of uint8, (n, height, width, channels).

        A cancelled one leaves the pool's queue: under overload, decoding for nobody would make the next late.

        Raises (from the future):
            ImageError, NotAnImage, TooLarge: of the first image that fails; among several its number is in the message.

        Raises:
            Overloaded: it would probably not be done within `within_s` seconds.
        """
        expected_s = (self.waiting + len(files)) * self._file_s / self._threads
        # The first in line is always taken: its time is what corrects a mean that has become too large.
        if self.waiting and expected_s > _MARGIN * within_s:
            waiting = f"{self.waiting} images wait to be decoded, about {expected_s:.1f} s of work"
            retry = max(1.0, expected_s)
            detail = f"the deadline would pass: {waiting}; try again in {retry:.0f} s."
            raise Overloaded(detail, retry_after_s=retry, reason="would_be_late")
        self.waiting += len(files)
        future = asyncio.get_running_loop().run_in_executor(self.pool, self._decode_all, files, spec)
        future.add_done_callback(lambda _: self._leave(len(files)))
        return future

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _leave(self, files: int) -> None:
        self.waiting -= files

    def _decode_all(self, files: list[bytes], spec: ImageSpec) -> NDArray[np.uint8]:
        started = time.perf_counter()
        batch = np.empty((len(files), *spec.shape), dtype=np.uint8)
        index = 0
        try:
            for index, data in enumerate(files):
                batch[index] = images.decode(data, spec, max_pixels=self._max_pixels)
        except ImageError as error:
            if len(files) == 1:
                raise
            raise type(error)(f"image {index} of {len(files)} (counted from 0): {error.message}") from error
        finally:
            # Several threads may cross here and one of their numbers be lost: it is a mean.
            self._file_s += _NEWEST * ((time.perf_counter() - started) / (index + 1) - self._file_s)
        return batch


def _tiny(data: bytes) -> bool:
    """Whether the header of a small PNG announces few pixels; other formats hide their size deeper."""
    if len(data) > _INLINE_BYTES or len(data) < 24 or not data.startswith(_PNG):
        return False
    return int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) <= _INLINE_PIXELS
