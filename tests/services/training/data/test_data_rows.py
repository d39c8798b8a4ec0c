from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from services.training.data.dataset import Split, digests
from services.training.data.rows import Rows, in_memory

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 2, 3, 1), dtype=np.uint8)


def rows() -> Rows:
    def read(places: NDArray[np.intp], out: NDArray[np.uint8]) -> None:
        out[:] = IMAGES[places]

    return Rows(read, np.arange(20), (2, 3, 1), digests(IMAGES))


@pytest.mark.parametrize(
    "key", [3, -1, slice(None), slice(2, 9, 3), slice(0, 0), np.array([5, 1, 5]), np.arange(20) % 2 == 0]
)
def test_what_an_array_is_asked_for_is_answered_alike(key: object) -> None:
    found = rows()
    np.testing.assert_array_equal(found[key], IMAGES[key])  # type: ignore[call-overload]
    assert (len(found), found.shape, found.nbytes, found.dtype) == (20, IMAGES.shape, IMAGES.nbytes, IMAGES.dtype)
    np.testing.assert_array_equal(np.asarray(found), IMAGES)


def test_a_part_of_a_part_is_read_from_the_right_places_and_nothing_is_read_before() -> None:
    read: list[int] = []

    def note(places: NDArray[np.intp], out: NDArray[np.uint8]) -> None:
        read.extend(places.tolist())
        out[:] = IMAGES[places]

    whole = Split(images=Rows(note, np.arange(20), (2, 3, 1), digests(IMAGES)).as_images(), labels=np.arange(20))
    part = whole.take(np.array([9, 4, 7, 2])).take(np.array([3, 0]))
    assert read == []
    np.testing.assert_array_equal(part.images[:], IMAGES[[2, 9]])
    assert part.labels.tolist() == [2, 9]
    assert part.fingerprint() == Split(images=IMAGES, labels=np.arange(20)).take(np.array([2, 9])).fingerprint()


def test_only_an_array_is_in_memory() -> None:
    assert in_memory(IMAGES)
    assert not in_memory(rows().as_images())
