"""Decoded images kept on disk: written atomically, verified when read, built again when damaged or out of date.

A file holds the sha256 of its second line; that line, JSON with the key and each array's name, dtype, shape and sha256;
then the arrays' bytes. Not .npz: a damaged zip directory can lose a whole array without any checksum noticing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from numpy.typing import NDArray

from contracts import images

_LOG = logging.getLogger(__name__)
_LAYOUT = 1  # raised when the meaning of the stored arrays changes

Arrays = dict[str, NDArray[Any]]


def key_of(*parts: object) -> str:
    """sha256 over JSON-able parts and what decodes the images: other code or another Pillow may give other pixels."""
    decoder = [PIL.__version__, _digest(Path(images.__file__))]
    return hashlib.sha256(json.dumps([_LAYOUT, *decoder, *parts]).encode()).hexdigest()


def remember(path: Path, key: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays that stand at `path` under `key`, or else those that `build` makes, which are then stored there.

    One path holds one key, so a data set that changes replaces its old entry instead of piling up beside it. A cache
    that cannot be read or written costs time and a warning, never the data.
    """
    try:
        with path.open("rb") as file:
            stored = _read(file, key)
    except FileNotFoundError:
        stored = None
    except (OSError, ValueError) as error:
        _LOG.warning("cache %s cannot be used (%s); it is built again", path, error)
        stored = None
    if stored is not None:
        return stored
    arrays = {name: np.ascontiguousarray(array) for name, array in build().items()}
    try:
        _write(path, key, arrays)
    except OSError as error:
        _LOG.warning("cache %s could not be written (%s); the images will be decoded again next time", path, error)
    return arrays


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(file: BinaryIO, key: str) -> Arrays | None:
    """None under another key; ValueError when damaged."""
    digest, head = file.readline().strip(), file.readline()
    if hashlib.sha256(head).hexdigest().encode() != digest:
        raise ValueError("its head does not match its checksum")
    content = json.loads(head)
    if content["key"] != key:
        return None
    arrays: Arrays = {}
    for name, entry in content["arrays"].items():
        arrays[name] = np.empty(entry["shape"], dtype=entry["dtype"])
        data = _bytes(arrays[name])
        file.readinto(data)  # type: ignore[attr-defined]  # what is missing at the end shows in the checksum
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise ValueError(f"{name} does not match its checksum")
    return arrays


def _write(path: Path, key: str, arrays: Arrays) -> None:
    entries = {
        name: {"dtype": array.dtype.str, "shape": array.shape, "sha256": hashlib.sha256(_bytes(array)).hexdigest()}
        for name, array in arrays.items()
    }
    head = json.dumps({"key": key, "arrays": entries}).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
    staged = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(head).hexdigest().encode() + b"\n" + head)
            for array in arrays.values():
                file.write(_bytes(array))
        staged.chmod(0o644)  # mkstemp is private; a container of another user may share the cache
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def _bytes(array: NDArray[Any]) -> memoryview:
    """The memory of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data
