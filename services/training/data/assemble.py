"""From what a reader found to three splits that are apart, complete and fingerprinted."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError
from contracts.recipe import Data
from services.training.data.dataset import Dataset, Source, Split, combine, digests, fingerprint
from services.training.data.splits import hold_out
from services.training.data.warn import warn

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Hashed:
    """A split and the digests of its images: they are needed four times and computed once."""

    split: Split
    digests: list[bytes]

    @classmethod
    def of(cls, split: Split) -> _Hashed:
        return cls(split, digests(split.images))

    def take(self, indices: NDArray[np.intp]) -> _Hashed:
        return _Hashed(self.split.take(indices), [self.digests[index] for index in indices])

    def fingerprint(self) -> str:
        return combine(self.split.labels, self.digests)


def assemble(source: Source, config: Data) -> Dataset:
    """Cut the splits that are missing, look for images in two of them or in two classes, and fingerprint them.

    Raises:
        DataError: a class is too small to split, `limit` is below the number of classes, or training and test images
            overlap with `on_overlap: fail`.
    """
    train = _Hashed.of(source.train)
    contradictions = _in_two_classes(train, source, config)
    validation: _Hashed | None = None
    if source.test is not None:
        test = _Hashed.of(source.test)
        validation = None if source.validation is None else _Hashed.of(source.validation)
    elif source.validation is not None:
        test = _Hashed.of(source.validation)
    else:
        train, test = _cut(train, config.test, source, config, "test")
    # Before validation is cut: an image that the test holds must not choose the best epoch either.
    inside = set(test.digests)
    overlap, train = _apart(train, inside, source, config)
    if validation is None:
        train, validation = _cut(train, config.validation, source, config, "validation")
    else:
        more, validation = _apart(validation, inside, source, config)
        overlap += more
    train = _limited(train, source, config)
    test_print = test.fingerprint()
    return Dataset(
        name=source.name,
        labels=source.labels,
        train=train.split,
        validation=validation.split,
        test=test.split,
        fingerprint=fingerprint(source.labels, [train.fingerprint(), validation.fingerprint(), test_print]),
        test_fingerprint=fingerprint(source.labels, [test_print]),
        skipped=source.skipped,
        overlap=overlap,
        contradictions=contradictions,
    )


def _cut(part: _Hashed, fraction: float, source: Source, config: Data, what: str) -> tuple[_Hashed, _Hashed]:
    kept, held = hold_out(
        part.split.labels, part.digests, fraction=fraction, seed=config.split_seed, names=source.labels, what=what
    )
    return part.take(kept), part.take(held)


def _limited(train: _Hashed, source: Source, config: Data) -> _Hashed:
    """At most `config.limit` images; a larger limit adds images and takes none away."""
    if config.limit is None or config.limit >= len(train.digests):
        return train
    if config.limit < len(source.labels):
        raise DataError(
            f"data.limit {config.limit} leaves no image for some of the {len(source.labels)} classes; raise it."
        )
    wanted, taken = config.limit, train
    while len(taken.digests) > config.limit:  # every class gives one image, also where its share of a few is none
        _, taken = _cut(train, wanted / len(train.digests), source, config, "limited training")
        wanted -= 1
    return taken


def _in_two_classes(train: _Hashed, source: Source, config: Data) -> int:
    """How many images stand in two classes; no network can be right about both, and one of the labels is wrong."""
    labels = train.split.labels.tolist()
    first: dict[bytes, int] = {}
    pairs: dict[bytes, tuple[int, int]] = {}
    for index, digest in enumerate(train.digests):
        before = first.setdefault(digest, index)
        if labels[before] != labels[index]:
            pairs.setdefault(digest, (before, index))
    if pairs:
        one, other = (
            source.paths[index] if source.paths else f"an image of {source.labels[labels[index]]!r}"
            for index in next(iter(pairs.values()))
        )
        found = f"{len(pairs):,} {'image stands' if len(pairs) == 1 else 'images stand'} in two classes"
        same = f"the first as {one} and as {other}, pixel by pixel the same"
        warn(_LOG, f"{_who(source, config)}: {found}, {same}; keep each in its right class only")
    return len(pairs)


def _who(source: Source, config: Data) -> str:
    return f"data set '{source.name}'" + (f" in {config.path}" if config.path is not None else "")


def _apart(part: _Hashed, inside: set[bytes], source: Source, config: Data) -> tuple[int, _Hashed]:
    """How many images of `part` the test split holds too, and `part` as `on_overlap` wants it."""
    same = np.fromiter((digest in inside for digest in part.digests), dtype=bool, count=len(part.digests))
    count = int(same.sum())
    if count == 0:
        return 0, part
    found = f"{_who(source, config)}: {count:,} of {len(same):,} images to fit on are identical to a test image"
    if config.on_overlap == "fail":
        raise DataError(f"{found}; remove them, or set data.on_overlap to drop.")
    if config.on_overlap == "warn":
        warn(_LOG, f"{found}; data.on_overlap: drop would leave them out of the fit")
        return count, part
    left = part.take(np.flatnonzero(~same))
    counts = np.bincount(left.split.labels, minlength=len(source.labels)).tolist()
    if 0 in counts:
        empty = source.labels[counts.index(0)]
        raise DataError(f"{found}, and without them class {empty!r} is empty; add images to it.")
    return count, left
