"""MNIST and Fashion-MNIST, read from the idx files in torchvision's layout.

The files are parsed here, packed or not, because torchvision's own loader wants them unpacked beside the packed ones
and the directory may be read-only. Nothing is written into it.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contracts import places
from contracts.errors import DataError
from services.training.data.dataset import Source, Split
from services.training.data.download import download


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    folder: str
    """torchvision's class, and the name of its directory."""
    labels: tuple[str, ...]


_KNOWN = {
    "mnist": _Known(folder="MNIST", labels=tuple("0123456789")),
    "fashion": _Known(
        folder="FashionMNIST",
        labels=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
}
_FILES = tuple(f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


def read(name: str, root: Path) -> Source:
    """`mnist` or `fashion`: 60,000 training and 10,000 test images of 28x28x1.

    Looks in `root`, then in $STRIDE_HOME/data, then downloads to the latter.

    Raises:
        DataError: the files are nowhere and there is no network, or a file is damaged.
    """
    known = _KNOWN[name]
    target = places.home() / "data"
    folder = next((place for place in (root, target) if _complete(place / known.folder / "raw")), None)
    if folder is None:
        files = f"{known.folder}/raw/ with {', '.join(f'{file}.gz' for file in _FILES)}"
        download(name, known.folder, known.folder, target=target, looked_in=root, files=files)
        folder = target
    raw = folder / known.folder / "raw"
    return Source(name=name, labels=known.labels, train=_split(raw, "train", known), test=_split(raw, "t10k", known))


def _complete(raw: Path) -> bool:
    return all((raw / name).is_file() or (raw / f"{name}.gz").is_file() for name in _FILES)


def _split(raw: Path, prefix: str, known: _Known) -> Split:
    images = _idx(raw / f"{prefix}-images-idx3-ubyte", dimensions=3)
    labels = _idx(raw / f"{prefix}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{raw}: {prefix} has {len(images)} images and {len(labels)} labels; bring the files again.")
    if (wrong := np.flatnonzero(labels >= len(known.labels))).size:
        raise DataError(
            f"{raw / prefix}-labels-idx1-ubyte: image {wrong[0]} has the label {labels[wrong[0]]}, expected "
            f"0-{len(known.labels) - 1}; bring the file again."
        )
    return Split(images=images[..., None], labels=labels.astype(np.int64))


def _idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """The array of an idx file: two zeros, type 8 (bytes), the number of dimensions, their sizes, the values."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{packed} cannot be read ({error}); bring the file again.") from error
    start = 4 + 4 * dimensions
    shape = np.frombuffer(data[4:start], dtype=">u4").tolist() if len(data) >= start else []
    if data[:4] != bytes((0, 0, 8, dimensions)) or len(data) != start + math.prod(shape):
        wanted = f"an idx file of bytes with {dimensions} dimensions"
        raise DataError(f"{path} is damaged ({len(data):,} bytes are not {wanted}); bring the file again.")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
