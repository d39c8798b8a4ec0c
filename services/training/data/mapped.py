"""Decoded images that are too many for memory: kept in a file of their own and mapped, or decoded when they are read.

    X.rows      uint8, image after image, and nothing else
    X.json      key, how many, which could not be decoded, sha256 over the digests of all images

The file is verified when it is opened, image by image, and built again when it is damaged or out of date. Where the
disk has no room for it, every image is decoded from its own file each time it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError, ImageError
from contracts.images import ImageSpec, decode
from services.training.data.dataset import digests
from services.training.data.decoding import decode_all
from services.training.data.rows import Read, Rows

_LOG = logging.getLogger(__name__)
_SPARE: Final = 2**30
"""Bytes that are left free on the disk."""
_CHUNK: Final = 256


def remember_rows(
    path: Path, key: str, read: Callable[[int], bytes], count: int, spec: ImageSpec, *, what: str
) -> tuple[Rows, dict[int, str]]:
    """The images that could be decoded, as they stand at `path` under `key`; they are decoded where they do not.

    Args:
        path: Without a suffix.
        key: As `services.training.data.cache.key_of` makes it.
        read: Gives the bytes of one file; called from several threads, also later where nothing is kept.
        count: Of the files.
        spec: What they are decoded to.
        what: For the progress bar.

    Returns:
        The images, and by index why a file could not be used.
    """
    file, head = path.with_suffix(".rows"), path.with_suffix(".json")
    stored = _opened(file, head, key, count, spec)
    if stored is None:
        needed = count * math.prod(spec.shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free + (file.stat().st_size if file.exists() else 0)
        if free < needed + _SPARE:
            _LOG.warning(
                "%s: %.3g GB of decoded images would not fit into the %.3g GB that are free; they are decoded anew "
                "in every epoch, which is slow; make room, or set STRIDE_HOME to another disk",
                path.parent,
                needed / 1e9,
                free / 1e9,
            )
            return _unkept(read, count, spec)
        _build(file, head, key, read, count, spec, what)
        stored = _opened(file, head, key, count, spec)
        if stored is None:
            raise DataError(f"{file} was written and cannot be read back; check the disk under STRIDE_HOME.")
    return stored


def _build(
    file: Path, head: Path, key: str, read: Callable[[int], bytes], count: int, spec: ImageSpec, what: str
) -> None:
    head.unlink(missing_ok=True)  # from here on the old rows are nobody's
    descriptor, name = tempfile.mkstemp(prefix=f".{file.stem}-", dir=file.parent)
    os.close(descriptor)
    staged = Path(name)
    try:
        images = np.memmap(staged, dtype=np.uint8, mode="w+", shape=(count, *spec.shape))
        _, reasons = decode_all(read, count, spec, what=what, images=images)
        images.flush()
        content = {"key": key, "count": count, "reasons": list(reasons.items()), "sha256": _all(_digests(images))}
        staged.chmod(0o644)  # mkstemp is private; a container of another user may share the cache
        staged.replace(file)
        staged = head.with_name(f".{head.name}.{os.getpid()}")
        staged.write_text(json.dumps(content))
        staged.replace(head)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def _opened(file: Path, head: Path, key: str, count: int, spec: ImageSpec) -> tuple[Rows, dict[int, str]] | None:
    try:
        content = json.loads(head.read_text())
        if content["key"] != key or content["count"] != count:
            return None
        # A file that is too short would end the process when it is read, not raise
        if file.stat().st_size != count * math.prod(spec.shape):
            raise ValueError("it has another size than was written")
        images = np.memmap(file, dtype=np.uint8, mode="r", shape=(count, *spec.shape))
        found = _digests(images)
        if _all(found) != content["sha256"]:
            raise ValueError("it does not match its checksum")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _LOG.warning("cache %s cannot be used (%s); it is built again", file, error)
        return None
    reasons = {int(index): str(reason) for index, reason in content["reasons"]}

    def read_rows(places: NDArray[np.intp], out: NDArray[np.uint8]) -> None:
        np.take(images, places, axis=0, out=out, mode="clip")  # with `raise` numpy buffers the result

    return _good(read_rows, count, spec, found, reasons), reasons


def _unkept(read: Callable[[int], bytes], count: int, spec: ImageSpec) -> tuple[Rows, dict[int, str]]:
    """Decode everything once, for the digests and for what cannot be used, and keep no image."""

    def read_rows(places: NDArray[np.intp], out: NDArray[np.uint8]) -> None:
        for index, place in enumerate(places.tolist()):
            try:
                out[index] = decode(read(place), spec)
            except (ImageError, OSError) as error:
                raise DataError(
                    f"file {place} of the data set cannot be decoded any more ({error}); leave the files as they are "
                    "while a fit reads them."
                ) from error

    found: list[bytes] = []
    reasons: dict[int, str] = {}
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        images, bad = decode_all(lambda index, start=start: read(start + index), stop - start, spec, what="")  # type: ignore[misc]
        found += _digests(images)
        reasons |= {start + index: reason for index, reason in bad.items()}
    return _good(read_rows, count, spec, found, reasons), reasons


def _good(read: Read, count: int, spec: ImageSpec, found: list[bytes], reasons: dict[int, Any]) -> Rows:
    places = np.setdiff1d(np.arange(count), list(reasons)).astype(np.intp)
    return Rows(read, places, spec.shape, [found[place] for place in places])


def _digests(images: NDArray[np.uint8]) -> list[bytes]:
    """Of each image; in threads, since hashing and reading release the interpreter's lock."""
    starts = range(0, len(images), _CHUNK)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        parts = pool.map(lambda start: digests(images[start : start + _CHUNK]), starts)
        return [digest for part in parts for digest in part]


def _all(found: list[bytes]) -> str:
    return hashlib.sha256(b"".join(found)).hexdigest()
