"""A directory of images: layouts, what is left out and named, and what is refused before anything is decoded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from contracts.errors import DataError, RecipeError
from contracts.images import ImageSpec, decode
from contracts.recipe import Data
from services.training.data import Dataset, folder, load

SPEC = ImageSpec(height=8, width=8, channels=3)


def _config(path: Path, **options: Any) -> Data:
    return Data(dataset="folder", path=str(path), image=SPEC, **options)


def _image(path: Path, shade: int) -> Path:
    """A small image whose content is its own, in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(shade).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def _photos(root: Path, *splits: str, classes: tuple[str, ...] = ("cats", "dogs"), count: int = 6) -> Path:
    shade = 0
    for split in splits or ("",):
        for name in classes:
            for number in range(count):
                shade += 1
                kind = ("jpg", "png", "webp", "bmp", "tall.png", "jpeg")[number % 6]
                _image(root / split / name / f"{number}.{kind}", shade)
    return root


def _load(path: Path, tmp_path: Path, **options: Any) -> Dataset:
    return load(_config(path, **options), root=tmp_path / "root", cache=tmp_path / "cache")


def _counts(dataset: Dataset) -> tuple[int, int, int]:
    return len(dataset.train), len(dataset.validation), len(dataset.test)


def test_a_directory_a_class_is_split_into_three(tmp_path: Path) -> None:
    found = _load(_photos(tmp_path / "photos", count=10), tmp_path, test=0.2, validation=0.25)
    assert (found.name, found.labels) == ("photos", ("cats", "dogs"))
    assert _counts(found) == (12, 4, 4)
    assert found.skipped == ()


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        (("train",), (8, 2, 2)),
        (("train", "test"), (10, 2, 12)),
        (("train", "val"), (10, 2, 12)),
        (("train", "validation"), (10, 2, 12)),
        (("train", "val", "test"), (12, 12, 12)),
    ],
)
def test_splits_that_are_there_are_taken_and_the_others_are_cut(
    tmp_path: Path, splits: tuple[str, ...], counts: tuple[int, int, int]
) -> None:
    assert _counts(_load(_photos(tmp_path / "photos", *splits), tmp_path, test=0.2, validation=0.2)) == counts


def test_val_without_test_is_the_test(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", "train", "val")
    found = _load(photos, tmp_path)
    expected = [decode(path.read_bytes(), SPEC) for path in sorted((photos / "val").rglob("*.*"))]
    np.testing.assert_array_equal(found.test.images, expected)


def test_images_are_what_the_image_contract_makes_of_the_files(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", "train", "val", "test")
    found = _load(photos, tmp_path)
    paths = [path for name in ("cats", "dogs") for path in sorted((photos / "train" / name).iterdir())]
    np.testing.assert_array_equal(found.train.images, [decode(path.read_bytes(), SPEC) for path in paths])
    assert found.train.labels.tolist() == [0] * 6 + [1] * 6


def test_images_below_a_class_are_found_in_subdirectories_too(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    _image(photos / "cats" / "indoor" / "old" / "1.png", 99)
    assert sum(_counts(_load(photos, tmp_path))) == 13


def test_classes_named_like_splits_are_classes(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "vehicles", classes=("train", "truck"))
    assert _load(photos, tmp_path).labels == ("train", "truck")


def test_hidden_files_and_what_desktops_leave_behind_are_ignored_silently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = _photos(tmp_path / "photos")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.jpg"):
        (photos / "cats" / name).write_bytes(b"nothing")
        (photos / name).write_bytes(b"nothing")
    (photos / ".git" / "x").mkdir(parents=True)
    (photos / "__MACOSX").mkdir()
    found = _load(photos, tmp_path, on_bad_image="fail")
    assert sum(_counts(found)) == 12
    assert caplog.text == ""


def _bad(photos: Path) -> dict[str, str]:
    """Files of each bad kind among the cats, and what is said of them."""
    cats = photos / "cats"
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(cats / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(cats / "placeholder.gif")
    (cats / "cut.png").write_bytes((cats / "1.png").read_bytes()[:150])
    (cats / "empty.jpg").write_bytes(b"")
    (cats / "notes.txt").write_text("these are cats")
    (cats / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    os.mkfifo(cats / "pipe.jpg")
    return {
        "cats/animated.gif": "GIF",
        "cats/cut.png": "could not be decoded",
        "cats/empty.jpg": "empty",
        "cats/gone.jpg": "No such file",
        "cats/notes.txt": "not an image",
        "cats/pipe.jpg": "not a regular file",
        "cats/placeholder.gif": "GIF",
    }


def test_bad_files_are_named_with_their_reason_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = _photos(tmp_path / "photos")
    bad = _bad(photos)
    found = _load(photos, tmp_path)
    assert sum(_counts(found)) == 12
    assert [item.path for item in found.skipped] == sorted(bad)
    for item in found.skipped:
        assert bad[item.path] in item.reason
        assert f"{item.path} is left out" in caplog.text


def test_bad_files_are_named_again_when_the_images_come_from_the_cache(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    _bad(photos)
    first, again = _load(photos, tmp_path), _load(photos, tmp_path)
    assert again.skipped == first.skipped
    assert again.fingerprint == first.fingerprint
    with pytest.raises(DataError, match=r"animated\.gif cannot be used"):
        _load(photos, tmp_path, on_bad_image="fail")


def test_a_bad_file_is_warned_of_once_however_often_the_images_are_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = _photos(tmp_path / "photos")
    (photos / "cats" / "bad.jpg").write_bytes(b"bad")
    for _ in range(3):
        assert len(_load(photos, tmp_path).skipped) == 1
    (photos / "dogs" / "worse.jpg").write_bytes(b"worse")
    _load(photos, tmp_path)
    assert [message.partition(" is left out")[0] for message in caplog.messages] == [
        str(photos / "cats" / "bad.jpg"),
        str(photos / "dogs" / "worse.jpg"),
    ]


@pytest.mark.parametrize("split", ["", "train"])
def test_an_image_in_two_classes_is_warned_of_with_both_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str
) -> None:
    photos = _photos(tmp_path / "photos", *([split, "test"] if split else []))
    (photos / split / "cats" / "0a.jpg").write_bytes(b"bad")  # what is left out must not shift the names
    one, other = photos / split / "cats" / "3.bmp", photos / split / "dogs" / "copy.bmp"
    other.write_bytes(one.read_bytes())
    found = _load(photos, tmp_path, on_overlap="warn")
    assert found.contradictions == 1
    (message,) = [text for text in caplog.messages if "two classes" in text]
    first, second = (path.relative_to(photos).as_posix() for path in (one, other))
    assert message.startswith(f"data set 'photos' in {photos}: 1 image stands in two classes, the first as {first} and")
    assert f"as {second}, pixel by pixel the same" in message


def test_a_bad_file_in_a_split_is_named_with_the_split(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", "train", "val")
    (photos / "val" / "dogs" / "bad.jpg").write_bytes(b"bad")
    assert [item.path for item in _load(photos, tmp_path).skipped] == ["val/dogs/bad.jpg"]


def test_a_bad_file_is_fatal_by_choice(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    (photos / "dogs" / "bad.jpg").write_bytes(b"bad")
    with pytest.raises(DataError, match=r"dogs/bad\.jpg cannot be used: .* set data\.on_bad_image to skip"):
        _load(photos, tmp_path, on_bad_image="fail")


def test_a_file_too_large_to_be_a_photograph_is_not_read_into_memory(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    with (photos / "cats" / "film.mp4").open("wb") as film:
        film.truncate(2**40)  # a sparse terabyte
    assert "1,099,511,627,776 bytes" in _load(photos, tmp_path).skipped[0].reason


def _refusal(path: Path, tmp_path: Path, kind: type[DataError | RecipeError] = DataError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        _load(path, tmp_path, **options)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "cache").exists(), "something was decoded before it was refused"
    return caught.value.message


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    message = _refusal(tmp_path / "nowhere", tmp_path)
    assert "does not exist; say where your images are with --set data.path=DIR" in message


def test_a_relative_path_that_is_not_there_is_refused_with_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"data.path 'images' does not exist in {tmp_path}; say where" in _refusal(Path("images"), tmp_path)


def test_a_file_instead_of_a_directory_is_refused(tmp_path: Path) -> None:
    assert "is not a directory" in _refusal(_image(tmp_path / "cat.png", 1), tmp_path)


def test_a_directory_without_class_directories_is_refused(tmp_path: Path) -> None:
    _image(tmp_path / "photos" / "cat.png", 1)
    assert "holds no class directories" in _refusal(tmp_path / "photos", tmp_path)


def test_one_class_is_refused(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", classes=("cats",))
    assert "has one class, 'cats', expected at least two" in _refusal(photos, tmp_path)


def test_one_directory_around_the_classes_is_offered_instead(tmp_path: Path) -> None:
    _photos(tmp_path / "photos" / "animals")
    assert f"give {tmp_path / 'photos' / 'animals'} instead" in _refusal(tmp_path / "photos", tmp_path)


@pytest.mark.parametrize("left", ["", ".DS_Store"])
def test_an_empty_class_is_refused(tmp_path: Path, left: str) -> None:
    photos = _photos(tmp_path / "photos")
    (photos / "elks").mkdir()
    if left:
        (photos / "elks" / left).write_bytes(b"")
    assert "class 'elks' has no images in" in _refusal(photos, tmp_path)


@pytest.mark.parametrize(("lacks", "has"), [("val", "train"), ("train", "val"), ("test", "train")])
def test_a_class_in_one_split_and_not_in_another_is_refused(tmp_path: Path, lacks: str, has: str) -> None:
    photos = _photos(tmp_path / "photos", "train", "val", "test")
    for split in {"train", "val", "test"} - {lacks}:
        _image(photos / split / "elks" / "1.png", 500)
    assert f"class 'elks' of {has}/ is not in {lacks}/" in _refusal(photos, tmp_path)


def test_a_test_directory_without_train_is_refused(tmp_path: Path) -> None:
    assert "has val/ and test/ but no train/" in _refusal(_photos(tmp_path / "photos", "val", "test"), tmp_path)


def test_val_beside_validation_is_refused(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", "train", "val", "validation")
    assert "has both validation/ and val/" in _refusal(photos, tmp_path)


def test_a_directory_beside_the_splits_is_not_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = _photos(tmp_path / "photos", "train", "val")
    _photos(photos / "extra")
    _load(photos, tmp_path)
    assert "extra is not read, only train, val" in caplog.text


def test_a_class_whose_files_are_all_bad_is_refused_with_a_reason(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    (photos / "elks").mkdir()
    (photos / "elks" / "1.jpg").write_bytes(b"bad")
    with pytest.raises(
        DataError, match=r"class 'elks' has no usable image \(.*elks/1\.jpg: the bytes are not an image"
    ):
        _load(photos, tmp_path)


def test_only_the_classes_that_are_wanted_are_read_in_their_order(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos", classes=("ants", "bees", "cats"))
    (photos / "ants" / "bad.jpg").write_bytes(b"bad")
    found = _load(photos, tmp_path, classes=("cats", "bees"), on_bad_image="fail")
    assert found.labels == ("cats", "bees")
    assert sum(_counts(found)) == 12


def test_a_class_that_is_not_there_is_refused_with_the_nearest(tmp_path: Path) -> None:
    message = _refusal(_photos(tmp_path / "photos"), tmp_path, RecipeError, classes=("cats", "dog"))
    assert "'dog' is not a class of" in message
    assert "did you mean 'dogs'?" in message


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = _photos(tmp_path / "photos")
    first = _load(photos, tmp_path)
    monkeypatch.delattr(folder, "decode_all")  # nothing is left to decode with
    assert _load(photos, tmp_path).fingerprint == first.fingerprint


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    before = _load(photos, tmp_path).fingerprint
    path = photos / "cats" / "1.png"
    stat = path.stat()
    _image(path, 777)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert _load(photos, tmp_path).fingerprint != before
    assert len(list((tmp_path / "cache").iterdir())) == 1, "the old entry was replaced"


def test_a_damaged_cache_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photos = _photos(tmp_path / "photos")
    before = _load(photos, tmp_path).fingerprint
    (cached,) = (tmp_path / "cache").iterdir()
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.write_bytes(data)
    assert _load(photos, tmp_path).fingerprint == before
    assert "cannot be used" in caplog.text


@pytest.mark.parametrize("change", [{"height": 9}, {"channels": 1}, {"resize": "pad"}, {"background": 5}])
def test_another_size_has_an_entry_of_its_own(tmp_path: Path, change: dict[str, Any]) -> None:
    photos = _photos(tmp_path / "photos")
    _load(photos, tmp_path)
    other = Data(dataset="folder", path=str(photos), image=ImageSpec(**(SPEC.model_dump() | change)))
    load(other, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_the_names_of_files_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    before = _load(photos, tmp_path)
    (photos / "cats" / "0.jpg").rename(photos / "cats" / "zzz.jpg")
    after = _load(photos, tmp_path)
    assert (after.fingerprint, after.test_fingerprint) == (before.fingerprint, before.test_fingerprint)


def test_a_relative_path_is_taken_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert load(_config(Path("photos")), cache=tmp_path / "cache").name == "photos"


@pytest.mark.parametrize("on_bad", ["skip", "fail"])
def test_the_cache_may_be_unwritable(tmp_path: Path, on_bad: Literal["skip", "fail"]) -> None:
    photos = _photos(tmp_path / "photos")
    (tmp_path / "cache").write_text("a file where the directory should be")
    assert sum(_counts(_load(photos, tmp_path, on_bad_image=on_bad))) == 12
