"""CIFAR-10: torchvision's verified batches, or an archive of the same images as JPEG files.

The JPEG variant is lossy; its data set is named `cifar10-jpeg`, so that none of its figures passes for an official one.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

import numpy as np

from contracts import places
from contracts.bundle import replace_directory
from contracts.errors import DataError
from contracts.images import ImageSpec
from services.training.data.cache import Arrays, key_of, remember
from services.training.data.dataset import Source, Split
from services.training.data.decoding import decode_all
from services.training.data.download import download

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = "cifar-10-batches-py"
PACKED = "cifar-10-python.tar.gz"
JPEG = "cifar10-jpeg.tar.gz"
_NATIVE = ImageSpec(height=32, width=32, channels=3)


def read(root: Path, cache: Path) -> Source:
    """50,000 training and 10,000 test images of 32x32x3.

    Looks for the official batches (unpacked in `root` or in $STRIDE_HOME/data, or packed in `root`), then for the
    JPEG archive in `root`, then downloads the official ones to $STRIDE_HOME/data. Nothing is written into `root`.

    Raises:
        DataError: the files are nowhere and there is no network, or they are damaged.
    """
    target = places.home() / "data"
    for place in (root, target, cache):
        if (place / BATCHES).is_dir():
            return _batches(place)
    if (root / PACKED).is_file():
        _unpack(root / PACKED, cache)
        return _batches(cache)
    if (root / JPEG).is_file():
        return _jpeg(root / JPEG, cache)
    download("cifar10", "CIFAR10", BATCHES, target=target, looked_in=root, files=f"{BATCHES}/, {PACKED} or {JPEG}")
    return _batches(target)


def _batches(place: Path) -> Source:
    """torchvision's class reads them: the batches are pickles, and it compares each with its known md5 before."""
    from torchvision.datasets import CIFAR10

    splits: list[Split] = []
    for train in (True, False):
        try:
            official = CIFAR10(root=place, train=train, download=False)
        except RuntimeError as error:
            raise DataError(f"{place / BATCHES} is not CIFAR-10 as published ({error}); bring it again.") from error
        images = np.ascontiguousarray(official.data, dtype=np.uint8)
        splits.append(Split(images=images, labels=np.asarray(official.targets, dtype=np.int64)))
    return Source(name="cifar10", labels=LABELS, train=splits[0], test=splits[1])


def _unpack(archive: Path, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{BATCHES}-", dir=cache))
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(staged, filter="data")  # refuses links and paths that lead out of `staged`
        replace_directory(staged / BATCHES, cache / BATCHES)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{archive} cannot be unpacked ({error}); bring the file again.") from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _jpeg(archive: Path, cache: Path) -> Source:
    """The JPEG archive, decoded straight from the tar stream: 60,000 small files would cost more than the decoding."""
    stat = archive.stat()
    key = key_of(str(archive.absolute()), stat.st_size, stat.st_mtime_ns)
    arrays = remember(cache / "cifar10-jpeg.arrays", key, lambda: _decode_archive(archive))
    train, test = (
        Split(images=arrays[f"{split}_images"], labels=arrays[f"{split}_labels"]) for split in ("train", "test")
    )
    return Source(name="cifar10-jpeg", labels=LABELS, train=train, test=test)


def _decode_archive(archive: Path) -> Arrays:
    members: dict[str, list[tuple[str, bytes]]] = {"train": [], "test": []}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = PurePosixPath(member.name).parts  # …/{train,test}/<class>/NNNN.jpg
                if member.isfile() and len(parts) >= 3 and parts[-3] in members:
                    if parts[-2] not in LABELS:
                        raise DataError(
                            f"{archive}: {member.name} is of class {parts[-2]!r}, expected one of {', '.join(LABELS)}; "
                            "bring the file again."
                        )
                    file = tar.extractfile(member)
                    members[parts[-3]].append(("/".join(parts[-3:]), file.read() if file else b""))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{archive} cannot be read ({error}); bring the file again.") from error
    arrays: Arrays = {}
    for split, files in members.items():
        files.sort()
        labels = np.array([LABELS.index(path.split("/")[1]) for path, _ in files], dtype=np.int64)
        if len(np.unique(labels)) < len(LABELS):
            raise DataError(
                f"{archive} lacks images in {split}/; expected {{train,test}}/<class>/*.jpg of ten classes."
            )
        what = f"decoding cifar10-jpeg {split}"
        images, reasons = decode_all(lambda index, files=files: files[index][1], len(files), _NATIVE, what=what)  # type: ignore[misc]
        for index, reason in reasons.items():
            raise DataError(f"{archive}: {files[index][0]} is damaged ({reason}); bring the file again.")
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    return arrays
