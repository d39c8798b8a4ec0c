"""A data set as the fit takes it: uint8 images in three splits, named and fingerprinted by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.training.data.rows import rows_of


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Images and their labels."""

    images: NDArray[np.uint8]
    """uint8, shape (n, height, width, channels), values 0-255; `Rows` stand for an array that memory cannot hold."""
    labels: NDArray[np.int64]
    """int64, shape (n,): indices into `Dataset.labels`."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.intp]) -> Split:
        """The images at `indices`, in their order; copied, unless they are read from disk."""
        rows = rows_of(self.images)
        images = self.images[indices] if rows is None else rows.take(indices)
        return Split(images=images, labels=self.labels[indices])

    def fingerprint(self) -> str:
        """sha256 over every image and its label, whatever their order."""
        return combine(self.labels, digests(self.images))


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A file of a folder that was left out."""

    path: str
    """Relative to the data set's directory."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Source:
    """What a reader found, before the missing splits are cut out of `train`."""

    name: str
    labels: tuple[str, ...]
    train: Split
    validation: Split | None = None
    test: Split | None = None
    skipped: tuple[Skipped, ...] = ()
    paths: tuple[str, ...] = ()
    """Of the images of `train`, in their order, relative to the data set's directory; empty where they are no files."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Dataset:
    """Three splits and what identifies them."""

    name: str
    """The data set's name; a variant whose images differ from the official ones is visible in it (`cifar10-jpeg`)."""
    labels: tuple[str, ...]
    """The class names, in the order of the label indices."""
    train: Split
    validation: Split
    test: Split
    fingerprint: str
    """sha256 over the class names and the content of the three splits; the order of images does not matter."""
    test_fingerprint: str
    """sha256 over the class names and the test split: two models are comparable where it is equal."""
    skipped: tuple[Skipped, ...]
    """The files that were left out, each with its reason."""
    overlap: int
    """How many images outside the test split were identical to one inside it (removed with `on_overlap: drop`)."""
    contradictions: int = 0
    """How many images the data set's training part holds in two classes, pixel by pixel the same."""


def digests(images: NDArray[np.uint8]) -> list[bytes]:
    """sha256 of each image, of its shape too: a white 2x8 image is not a white 4x4 one."""
    if (rows := rows_of(images)) is not None:
        return rows.digests
    shape = np.asarray(images.shape[1:], dtype="<i8").tobytes()
    flat = np.ascontiguousarray(images).reshape(len(images), -1)
    return [hashlib.sha256(shape + row.data).digest() for row in flat]


def combine(labels: NDArray[np.int64], image_digests: Sequence[bytes]) -> str:
    """sha256 over pairs of label and image digest, sorted, so that the order on disk does not matter."""
    pairs = sorted(
        int(label).to_bytes(8, "little") + digest for label, digest in zip(labels, image_digests, strict=True)
    )
    return hashlib.sha256(b"".join(pairs)).hexdigest()


def fingerprint(names: Sequence[str], split_fingerprints: Iterable[str]) -> str:
    """sha256 over the class names and the fingerprints of splits, in the order given."""
    return hashlib.sha256(json.dumps([list(names), *split_fingerprints]).encode()).hexdigest()
