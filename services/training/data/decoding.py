"""Many images through the image contract, in threads, into one preallocated array."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from contracts.errors import ImageError
from contracts.images import ImageSpec, decode, encode_png
from services.training.data.cache import Arrays, key_of, remember

_CHUNK = 64  # images a task: small enough for an even load, large enough that the pool costs nothing


def decode_all(
    read: Callable[[int], bytes],
    count: int,
    spec: ImageSpec,
    *,
    what: str,
    images: NDArray[np.uint8] | None = None,
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Decode `count` images; `read` gives the bytes of one and is called from several threads.

    Args:
        images: Where they go, zeros of the right shape; in memory without it.

    Returns:
        uint8 images of shape (count, height, width, channels), and by index why an image could not be used (its
        place in the array is zero).
    """
    images = np.zeros((count, *spec.shape), dtype=np.uint8) if images is None else images
    reasons: dict[int, str] = {}

    def work(start: int) -> int:
        stop = min(start + _CHUNK, count)
        for index in range(start, stop):
            try:
                images[index] = decode(read(index), spec)
            except ImageError as error:
                reasons[index] = error.message.partition(";")[0]  # without the advice, which is for who sent a request
            except OSError as error:
                reasons[index] = f"the file cannot be read: {error.strerror or error}"
        return stop - start

    with (
        ThreadPoolExecutor(_threads()) as pool,
        tqdm(total=count, desc=what, unit="image", disable=None if what else True) as bar,
    ):
        for done in as_completed([pool.submit(work, start) for start in range(0, count, _CHUNK)]):
            bar.update(done.result())
    return images, dict(sorted(reasons.items()))


def resize_all(images: NDArray[np.uint8], spec: ImageSpec, *, cache: Path, name: str) -> NDArray[np.uint8]:
    """Bring stored images to `spec` exactly as a server would: each goes through the image contract as a PNG.

    Args:
        images: uint8, shape (n, any height, any width, 1 or 3).
        cache: the directory that keeps the result, under `name`, the spec and the content.

    Returns:
        uint8, shape (n, height, width, channels); `images` itself where nothing is to be done.
    """
    if images.shape[1:] == spec.shape:
        return images
    key = key_of(spec.model_dump(), images.shape, hashlib.sha256(np.ascontiguousarray(images).data).hexdigest())

    def build() -> Arrays:
        resized, _ = decode_all(lambda index: encode_png(images[index]), len(images), spec, what=f"resizing {name}")
        return {"images": resized}

    return remember(cache / f"{name}-{spec.height}x{spec.width}x{spec.channels}-{key[:16]}.arrays", key, build)[
        "images"
    ]


def _threads() -> int:
    # Pillow releases the interpreter's lock while it decodes, so threads do use the processors that we may use.
    return min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
