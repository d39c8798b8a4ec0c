"""A directory of images as a data set: class/*.jpg|png…, directly or under train/, val/ and test/.

    photos/cats/1.jpg   photos/dogs/2.png                      every split is cut from the whole
    photos/train/cats/1.jpg … photos/val/… photos/test/…       what is there is taken as it is

Every visible file below a class directory is tried by its content, whatever its name says. Hidden files and those that
desktops leave behind are no part of a data set. A GIF is named and left out: among photographs it is what a web page
showed in the place of one.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contracts.errors import DataError, NotAnImage
from contracts.images import ImageSpec
from contracts.recipe import Data
from services.training.data.cache import Arrays, key_of, remember
from services.training.data.classes import indices_of
from services.training.data.dataset import Skipped, Source, Split
from services.training.data.decoding import decode_all
from services.training.data.mapped import remember_rows
from services.training.data.warn import warn
from services.training.room import resident_limit

_LOG = logging.getLogger(__name__)
_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
_LEFT_BEHIND = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
_GIF = (b"GIF87a", b"GIF89a")
_RULES = 2  # raised where the same files give other images than before, so that old caches are not taken
_MAX_BYTES = 256 * 2**20  # a video in a class directory is named and left out, not read into memory


@dataclass(frozen=True, kw_only=True, slots=True)
class _Listing:
    """The files of one split, sorted by class and path."""

    split: str
    directory: Path
    files: tuple[tuple[int, str], ...]
    """Label and path relative to `directory`."""


def read(config: Data, cache: Path) -> Source:
    """Read the directory `config.path`; only `config.classes`, in that order, where they are given.

    Splits that are not there stay None. The decoded images are kept in `cache`.

    Raises:
        RecipeError: a class of `config.classes` has no directory.
        DataError: no such directory, no images, fewer than two classes, a class that is empty or not in every split,
            or, with `on_bad_image: fail`, a file that is not a still image.
    """
    root = Path(config.path or "").expanduser()
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "does not exist"
        where = "" if root.is_absolute() else f" in {Path.cwd()}"
        raise DataError(
            f"data.path {str(root)!r} {what}{where}; say where your images are with --set data.path=DIR, a directory "
            "with one directory of images a class."
        )
    directories = _split_directories(root)
    labels = _labels(root, directories, config.classes)
    # Everything that names alone can tell is refused before the first image is decoded.
    listings = [_list(split, directory, labels) for split, directory in directories.items()]
    size = sum(len(listing.files) for listing in listings) * math.prod(config.image.shape)
    too_many = size > resident_limit("cpu")
    splits: dict[str, Split] = {}
    skipped: list[Skipped] = []
    paths: tuple[str, ...] = ()
    for listing in listings:
        split, bad = _decode(listing, config.image, cache, on_disk=too_many)
        prefix = "" if listing.directory == root else f"{listing.directory.name}/"
        skipped += [Skipped(path=prefix + item.path, reason=item.reason) for item in bad]
        if bad and config.on_bad_image == "fail":
            reason = f"{listing.directory / bad[0].path} cannot be used: {bad[0].reason}"
            raise DataError(f"{reason}; remove it, or set data.on_bad_image to skip.")
        _every_class(split, listing, labels, bad)
        splits[listing.split] = split
        if listing.split == "train":
            left_out = {item.path for item in bad}
            paths = tuple(prefix + path for _, path in listing.files if path not in left_out)
    for item in skipped:
        warn(_LOG, f"{root / item.path} is left out: {item.reason}")
    name = root.resolve().name or "folder"
    return Source(name=name, labels=labels, skipped=tuple(skipped), paths=paths, **splits)


def _split_directories(root: Path) -> dict[str, Path]:
    """Split -> directory. A class may be called `train` too: its directory holds images, not directories."""
    found: dict[str, Path] = {}
    for split, names in _SPLITS.items():
        there = [root / name for name in names if (root / name).is_dir() and _directories(root / name)]
        if len(there) > 1:
            raise DataError(f"{root} has both {there[0].name}/ and {there[1].name}/; keep one of them.")
        if there:
            found[split] = there[0]
    if not found:
        return {"train": root}
    if "train" not in found:
        there_are = " and ".join(f"{directory.name}/" for directory in found.values())
        raise DataError(f"{root} has {there_are} but no train/; add train/ with one directory of images a class.")
    beside = sorted({directory.name for directory in _directories(root)} - {item.name for item in found.values()})
    if beside:
        read_are = ", ".join(item.name for item in found.values())
        warn(_LOG, f"{root}: {beside[0]} is not read, only {read_are}")
    return found


def _labels(root: Path, directories: dict[str, Path], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    classes = {split: {item.name for item in _directories(path)} for split, path in directories.items()}
    known = tuple(sorted(classes["train"]))
    if not known:
        raise DataError(f"{directories['train']} holds no class directories; put the images of each class into one.")
    if len(known) < 2:
        below = directories["train"] / known[0]
        hint = f"give {below} instead" if len(_directories(below)) > 1 else "add another class"
        raise DataError(f"{directories['train']} has one class, {known[0]!r}, expected at least two; {hint}.")
    labels = known if wanted is None else tuple(known[index] for index in indices_of(wanted, known, name=str(root)))
    for split, found in classes.items():
        other = directories[split].name
        for absent in sorted(set(labels) - found):
            raise DataError(f"{root}: class {absent!r} of train/ is not in {other}/; every split needs every class.")
        for alone in sorted(found - set(known)):
            raise DataError(f"{root}: class {alone!r} of {other}/ is not in train/; every split needs every class.")
    return labels


def _list(split: str, directory: Path, labels: Sequence[str]) -> _Listing:
    files: list[tuple[int, str]] = []
    for label, name in enumerate(labels):
        found = sorted(_files(directory / name))
        if not found:
            raise DataError(f"class {name!r} has no images in {directory / name}; add some or remove the directory.")
        files += [(label, f"{name}/{path}") for path in found]
    return _Listing(split=split, directory=directory, files=tuple(files))


def _decode(listing: _Listing, spec: ImageSpec, cache: Path, *, on_disk: bool) -> tuple[Split, list[Skipped]]:
    """The images of one split that could be decoded, and the files that could not; `on_disk`: not in memory."""
    stats = [_stat(listing.directory / path) for _, path in listing.files]
    identity = [[path, size, modified] for (_, path), (size, modified) in zip(listing.files, stats, strict=True)]
    where = [str(listing.directory.resolve()), spec.model_dump()]
    labels = np.array([label for label, _ in listing.files], dtype=np.int64)

    def read_file(index: int) -> bytes:
        if stats[index][0] > _MAX_BYTES:
            raise OSError(f"{stats[index][0]:,} bytes are more than {_MAX_BYTES:,}")
        path = listing.directory / listing.files[index][1]
        if path.exists() and not path.is_file():
            raise OSError("it is not a regular file")  # a pipe would block the thread that reads it
        data = path.read_bytes()
        if data.startswith(_GIF):
            raise NotAnImage("it is a GIF, which is no photograph; convert it to PNG to use it.")
        return data

    def build() -> Arrays:
        images, reasons = decode_all(read_file, len(labels), spec, what=f"decoding {listing.directory.name}")
        if reasons:
            images = np.delete(images, list(reasons), axis=0)
        document = json.dumps([[index, reason] for index, reason in reasons.items()])
        return {"images": images, "reasons": np.frombuffer(document.encode(), dtype=np.uint8)}

    path, key = cache / f"folder-{key_of(*where)[:24]}", key_of(where, identity, _RULES)
    if on_disk:
        what = f"decoding {listing.directory.name}"
        rows, found = remember_rows(path, key, read_file, len(labels), spec, what=what)
        images, reasons = rows.as_images(), list(found.items())
    else:
        stored = remember(path.with_suffix(".arrays"), key, build)
        images, reasons = stored["images"], json.loads(stored["reasons"].tobytes())
    bad = [Skipped(path=listing.files[index][1], reason=reason) for index, reason in reasons]
    return Split(images=images, labels=np.delete(labels, [index for index, _ in reasons])), bad


def _stat(path: Path) -> tuple[int, int]:
    """Size and modification time in nanoseconds; -1 for a link to nowhere, which then fails by name when it is read."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _every_class(split: Split, listing: _Listing, labels: Sequence[str], bad: Sequence[Skipped]) -> None:
    for label, count in enumerate(np.bincount(split.labels, minlength=len(labels)).tolist()):
        if count == 0:
            first = next(item for item in bad if item.path.startswith(f"{labels[label]}/"))
            where = listing.directory / first.path
            raise DataError(f"class {labels[label]!r} has no usable image ({where}: {first.reason}); add images to it.")


def _directories(path: Path) -> list[Path]:
    return sorted(item for item in path.iterdir() if _visible(item.name) and item.is_dir())


def _files(directory: Path) -> list[str]:
    """The visible files below a directory, relative to it, with / between the parts."""
    found: list[str] = []
    for parent, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if _visible(name)]
        found += [(Path(parent) / name).relative_to(directory).as_posix() for name in files if _visible(name)]
    return found


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in _LEFT_BEHIND
