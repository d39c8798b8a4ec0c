"""Stratified, seeded splits that depend on the images alone.

Every image is ranked by sha256(seed, sha256(image)), and the lowest ranks of each class are held out. No random number
generator is involved, so a split is the same on every platform and version; it does not depend on file names or their
order; an image that is added moves few others; and identical images of a class have the same rank, so that they nearly
always land on the same side.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from contracts.errors import DataError


def hold_out(
    labels: NDArray[np.int64],
    image_digests: Sequence[bytes],
    *,
    fraction: float,
    seed: int,
    names: Sequence[str],
    what: str,
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Split into what is kept and what is held out.

    Args:
        labels: int64, shape (n,): indices into `names`.
        image_digests: n digests of the images.
        fraction: share of all images that is held out, in (0, 1); each class gives its part, at least one image.
        what: what the held-out images are for, as an error would say it: "test" or "validation".

    Returns:
        Two ascending arrays of indices (kept, held out); each holds every class.

    Raises:
        DataError: a class has fewer than two images.
    """
    counts = np.bincount(labels, minlength=len(names))
    for name, count in zip(names, counts, strict=True):
        if count < 2:
            images = "image" if count == 1 else "images"
            raise DataError(f"class {name!r} has {count} {images} to cut the {what} split from; give it at least two.")
    salt = seed.to_bytes(16, "little", signed=True)
    ranks = [hashlib.sha256(salt + digest).digest() for digest in image_digests]
    held: list[int] = []
    for label, quota in enumerate(_quotas([int(count) for count in counts], fraction)):
        members = np.flatnonzero(labels == label).tolist()
        held += sorted(members, key=lambda index: (ranks[index], index))[:quota]
    mask = np.zeros(len(labels), dtype=bool)
    mask[held] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def _quotas(counts: Sequence[int], fraction: float) -> list[int]:
    """How many each class gives: the largest remainders are rounded up, so that the total is right to one image."""
    shares = [count * fraction for count in counts]
    quotas = [math.floor(share) for share in shares]
    missing = math.floor(sum(counts) * fraction + 0.5) - sum(quotas)
    by_remainder = sorted(range(len(counts)), key=lambda label: (quotas[label] - shares[label], label))
    for label in by_remainder[:missing]:
        quotas[label] += 1
    return [min(max(quota, 1), count - 1) for quota, count in zip(quotas, counts, strict=True)]
