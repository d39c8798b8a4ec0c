from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from contracts.errors import DataError
from contracts.images import ImageSpec, encode_png
from contracts.recipe import Data
from services.training.data import load
from services.training.data.mapped import remember_rows

SPEC = ImageSpec(height=4, width=5, channels=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)


class Files:
    """Ten files, the fourth of which is no image; counts how often one is read."""

    def __init__(self) -> None:
        self.contents = [encode_png(image) for image in IMAGES]
        self.contents[3] = b"not an image"
        self.reads = 0

    def __call__(self, index: int) -> bytes:
        self.reads += 1
        return self.contents[index]


def remembered(directory: Path, files: Files, key: str = "k") -> tuple[np.ndarray, dict[int, str]]:
    rows, reasons = remember_rows(directory / "folder", key, files, 10, SPEC, what="decoding")
    return rows[:], reasons


def test_images_are_decoded_once_and_read_from_the_file_afterwards(tmp_path: Path) -> None:
    files = Files()
    for _ in range(2):
        images, reasons = remembered(tmp_path, files)
        np.testing.assert_array_equal(images, np.delete(IMAGES, 3, axis=0))
        assert list(reasons) == [3]
        assert files.reads == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.json", "folder.rows"]


def test_another_key_decodes_anew_in_the_same_place(tmp_path: Path) -> None:
    files = Files()
    remembered(tmp_path, files)
    remembered(tmp_path, files, key="other")
    assert files.reads == 20
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["flipped", "short", "head"])
def test_a_damaged_file_is_built_again(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = Files()
    remembered(tmp_path, files)
    path = tmp_path / ("folder.json" if damage == "head" else "folder.rows")
    content = bytearray(path.read_bytes())
    content[50] ^= 255
    path.write_bytes(content[:-1] if damage == "short" else b"{" if damage == "head" else content)
    images, _ = remembered(tmp_path, files)
    np.testing.assert_array_equal(images, np.delete(IMAGES, 3, axis=0))
    assert files.reads == 20
    assert "it is built again" in caplog.text


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_without_room_on_the_disk_images_are_decoded_whenever_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 900, 100))
    files = Files()
    rows, reasons = remember_rows(tmp_path / "folder", "k", files, 10, SPEC, what="decoding")
    assert files.reads == 10
    np.testing.assert_array_equal(rows[:], np.delete(IMAGES, 3, axis=0))
    assert (files.reads, list(reasons)) == (19, [3])
    assert "decoded anew in every epoch" in caplog.text
    assert list(tmp_path.iterdir()) == []
    files.contents[0] = b"changed"
    with pytest.raises(DataError, match="cannot be decoded any more"):
        rows[0]


def test_a_folder_is_the_same_data_set_in_memory_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    for index, image in enumerate(np.random.default_rng(1).integers(0, 256, (40, 4, 5, 3), dtype=np.uint8)):
        path = tmp_path / "photos" / ("cats" if index % 2 else "dogs") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image) if index != 6 else b"broken")
    config = Data(dataset="folder", path=str(tmp_path / "photos"), image=SPEC)
    small = load(config, cache=tmp_path / "cache")
    monkeypatch.setenv("STRIDE_RESIDENT", "100")
    large = load(config, cache=tmp_path / "cache")
    assert (large.fingerprint, large.test_fingerprint) == (small.fingerprint, small.test_fingerprint)
    assert [item.path for item in large.skipped] == ["dogs/6.png"]
    for name in ("train", "validation", "test"):
        part, wanted = getattr(large, name), getattr(small, name)
        assert not isinstance(part.images, np.ndarray)
        np.testing.assert_array_equal(part.images[:], wanted.images)
        assert part.labels.tolist() == wanted.labels.tolist()
