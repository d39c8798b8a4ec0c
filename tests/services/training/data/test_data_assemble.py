"""From what a reader found to three splits: which are cut, and what becomes of images that stand in two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contracts.errors import DataError
from contracts.images import ImageSpec
from contracts.recipe import Data
from services.training.data.assemble import assemble
from services.training.data.dataset import Source, Split


def _config(**options: Any) -> Data:
    return Data(dataset="digits", image=ImageSpec(height=4, width=4, channels=1), **options)


def _split(count: int, *, seed: int) -> Split:
    images = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 1), dtype=np.uint8)
    return Split(images=images, labels=np.arange(count, dtype=np.int64) % 2)


def _source(*, train: Split | None = None, validation: Split | None = None, test: Split | None = None) -> Source:
    train = train or _split(100, seed=0)
    return Source(name="noise", labels=("even", "odd"), train=train, validation=validation, test=test)


def _contents(split: Split) -> set[bytes]:
    return {image.tobytes() for image in split.images}


def test_without_any_split_test_and_validation_are_cut_from_train() -> None:
    found = assemble(_source(), _config(test=0.2, validation=0.25))
    assert (len(found.train), len(found.validation), len(found.test)) == (60, 20, 20)
    assert len(_contents(found.train) | _contents(found.validation) | _contents(found.test)) == 100


def test_a_test_split_is_taken_as_it_is_and_validation_is_cut() -> None:
    test = _split(30, seed=1)
    found = assemble(_source(test=test), _config(validation=0.1))
    assert (len(found.train), len(found.validation)) == (90, 10)
    np.testing.assert_array_equal(found.test.images, test.images)


def test_a_validation_split_alone_is_the_test_and_validation_is_cut_from_train() -> None:
    given = _split(30, seed=1)
    found = assemble(_source(validation=given), _config(validation=0.1))
    assert (len(found.train), len(found.validation)) == (90, 10)
    np.testing.assert_array_equal(found.test.images, given.images)


def test_with_all_splits_nothing_is_cut() -> None:
    found = assemble(_source(validation=_split(20, seed=1), test=_split(30, seed=2)), _config())
    assert (len(found.train), len(found.validation), len(found.test)) == (100, 20, 30)


def test_everything_stays_bytes_and_labels_stay_integers() -> None:
    found = assemble(_source(), _config())
    for split in (found.train, found.validation, found.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        assert split.images.flags["C_CONTIGUOUS"]


def test_another_seed_of_the_fit_cannot_change_the_test_but_the_split_seed_does() -> None:
    prints = [assemble(_source(), _config(split_seed=seed)).test_fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_the_fingerprint_knows_how_the_images_are_split() -> None:
    test = _split(30, seed=1)
    small, large = (assemble(_source(test=test), _config(validation=share)) for share in (0.1, 0.3))
    assert small.fingerprint != large.fingerprint
    assert small.test_fingerprint == large.test_fingerprint


def test_the_fingerprint_does_not_depend_on_the_order_of_the_images() -> None:
    train = _split(100, seed=0)
    shuffled = train.take(np.random.default_rng(3).permutation(100))
    plain, other = (assemble(_source(train=split), _config()) for split in (train, shuffled))
    assert plain.fingerprint == other.fingerprint
    assert plain.test_fingerprint == other.test_fingerprint


def _overlapping() -> Source:
    train, test = _split(100, seed=0), _split(30, seed=1)
    test.images[:4] = train.images[:4]
    return _source(train=train, test=test)


def test_identical_images_in_train_and_test_are_counted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):  # the fit and the export load the same data; once is enough to hear it
        found = assemble(_overlapping(), _config())
        assert found.overlap == 4
        assert len(found.train) + len(found.validation) == 100
    (message,) = caplog.messages
    assert "4 of 100 images to fit on are identical to a test image" in message


def test_identical_images_of_two_classes_are_counted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    train = _split(100, seed=0)
    train.images[[11, 20, 33]] = train.images[[10, 10, 32]]  # 10 and 20 are both even, the others even and odd
    assert assemble(_source(train=train, test=_split(30, seed=1)), _config()).contradictions == 2
    (message,) = caplog.messages
    assert message == (
        "data set 'noise': 2 images stand in two classes, the first as an image of 'even' and as an image of 'odd', "
        "pixel by pixel the same; keep each in its right class only"
    )


def test_identical_images_of_one_class_contradict_nothing(caplog: pytest.LogCaptureFixture) -> None:
    train = _split(100, seed=0)
    train.images[20] = train.images[10]
    assert assemble(_source(train=train, test=_split(30, seed=1)), _config()).contradictions == 0
    assert caplog.text == ""


def test_they_are_dropped_from_everything_that_is_fitted_on() -> None:
    found = assemble(_overlapping(), _config(on_overlap="drop"))
    assert found.overlap == 4
    assert len(found.train) + len(found.validation) == 96
    assert len(found.test) == 30
    assert not (_contents(found.train) | _contents(found.validation)) & _contents(found.test)


def test_they_are_dropped_from_a_given_validation_split_too() -> None:
    validation, test = _split(20, seed=1), _split(30, seed=2)
    test.images[:3] = validation.images[:3]
    found = assemble(_source(validation=validation, test=test), _config(on_overlap="drop"))
    assert (found.overlap, len(found.validation)) == (3, 17)


def test_they_are_fatal_by_choice() -> None:
    with pytest.raises(DataError, match=r"'noise': 4 of 100 images .* set data\.on_overlap to drop"):
        assemble(_overlapping(), _config(on_overlap="fail"))


def test_a_class_that_is_empty_without_them_is_named() -> None:
    train = _split(10, seed=0)
    with pytest.raises(DataError, match="class 'odd' is empty"):
        assemble(_source(train=train, test=train.take(np.flatnonzero(train.labels == 1))), _config(on_overlap="drop"))


def test_without_overlap_none_is_counted() -> None:
    assert assemble(_source(), _config(on_overlap="fail")).overlap == 0


def test_a_class_that_is_too_small_for_two_cuts_is_named_with_the_split_that_lacks_images() -> None:
    train = _split(10, seed=0).take(np.array([0, 1, 2, 4, 3, 6]))  # two odd ones: one for the test, one is left
    with pytest.raises(DataError, match="class 'odd' has 1 image to cut the validation split from"):
        assemble(_source(train=train), _config())


def test_a_limit_takes_a_stratified_part_of_train_alone_and_a_larger_one_adds_to_it() -> None:
    whole, some, more = (assemble(_source(test=_split(30, seed=1)), _config(limit=limit)) for limit in (None, 20, 40))
    assert [len(found.train) for found in (whole, some, more)] == [90, 20, 40]
    assert np.bincount(some.train.labels).tolist() == [10, 10]
    assert _contents(some.train) < _contents(more.train) < _contents(whole.train)
    for found in (some, more):
        assert found.validation.fingerprint() == whole.validation.fingerprint()
        assert found.test_fingerprint == whole.test_fingerprint
        assert found.fingerprint != whole.fingerprint


def test_a_limit_above_the_images_changes_nothing_and_one_below_the_classes_is_refused() -> None:
    assert assemble(_source(), _config(limit=1000)).fingerprint == assemble(_source(), _config()).fingerprint
    with pytest.raises(DataError, match=r"data\.limit 1 leaves no image for some of the 2 classes"):
        assemble(_source(), _config(limit=1))


def test_a_limit_is_kept_where_every_rare_class_takes_an_image_of_it() -> None:
    """A share of 12 of 189 images is no image of a class of four, and each class gives at least one."""
    labels = np.repeat(np.arange(7), [165, 4, 4, 4, 4, 4, 4]).astype(np.int64)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 4, 4, 1), dtype=np.uint8)
    source = Source(
        name="noise", labels=tuple("abcdefg"), train=Split(images=images, labels=labels), test=_split(30, seed=1)
    )

    found = assemble(source, _config(limit=12))

    counts = np.bincount(found.train.labels, minlength=7)
    assert counts.sum() <= 12
    assert counts.min() == 1
