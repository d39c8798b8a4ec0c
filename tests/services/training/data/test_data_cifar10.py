"""CIFAR-10: which of its forms is read, and that the JPEG one says what it is."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contracts.errors import DataError
from services.training.data import cifar10
from services.training.data.cifar10 import LABELS, read


def _jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, shade, shade)).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def _archive(root: Path, extra: dict[str, bytes] | None = None, *, skip: str = "") -> Path:
    """Two training images and one test image a class; the shade tells class and number."""
    files = {
        f"cifar10-jpeg/{split}/{name}/{number:04}.jpg": _jpeg(20 * label + number)
        for split, count in (("train", 2), ("test", 1))
        for label, name in enumerate(LABELS)
        for number in range(count)
        if f"{split}/{name}" != skip
    }
    path = root / "cifar10-jpeg.tar.gz"
    # Written backwards: the order in the archive must not matter.
    with tarfile.open(path, "w:gz") as tar:
        for name, data in reversed(list((files | (extra or {})).items())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_the_jpeg_archive_is_read_in_order_and_its_name_is_visible(tmp_path: Path) -> None:
    _archive(tmp_path)
    source = read(tmp_path, tmp_path / "cache")
    assert source.name == "cifar10-jpeg"
    assert source.labels == LABELS
    assert source.train.labels.tolist() == [label for label in range(10) for _ in range(2)]
    shades = [20 * label + number for label in range(10) for number in range(2)]
    assert np.abs(source.train.images[:, 0, 0, 0].astype(int) - shades).max() <= 1
    assert source.test is not None
    assert source.test.images.shape == (10, 32, 32, 3)


def test_the_archive_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _archive(tmp_path)
    first = read(tmp_path, tmp_path / "cache")
    monkeypatch.delattr(cifar10, "decode_all")  # nothing is left to decode with
    again = read(tmp_path, tmp_path / "cache")
    np.testing.assert_array_equal(first.train.images, again.train.images)


def test_another_archive_in_its_place_is_decoded_again(tmp_path: Path) -> None:
    _archive(tmp_path)
    read(tmp_path, tmp_path / "cache")
    _archive(tmp_path, {"cifar10-jpeg/train/cat/0002.jpg": _jpeg(9)})
    assert len(read(tmp_path, tmp_path / "cache").train) == 21


def test_members_that_lead_out_of_the_archive_are_not_written_anywhere(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    _archive(root, {"../../escaped.jpg": _jpeg(0), "/cifar10-jpeg/train/cat/../../../x.jpg": _jpeg(0)})
    read(root, tmp_path / "cache")
    assert sorted(item.name for item in tmp_path.rglob("*") if item.is_file()) == [
        "cifar10-jpeg.arrays",
        "cifar10-jpeg.tar.gz",
    ]


def test_a_damaged_image_in_the_archive_is_named(tmp_path: Path) -> None:
    _archive(tmp_path, {"cifar10-jpeg/train/cat/0009.jpg": _jpeg(0)[:200]})
    with pytest.raises(DataError, match=r"train/cat/0009\.jpg is damaged"):
        read(tmp_path, tmp_path / "cache")


def test_an_archive_that_lacks_a_class_is_refused(tmp_path: Path) -> None:
    _archive(tmp_path, skip="test/ship")
    with pytest.raises(DataError, match="lacks images in test/"):
        read(tmp_path, tmp_path / "cache")


def test_an_image_of_another_class_in_the_archive_is_refused_by_name(tmp_path: Path) -> None:
    _archive(tmp_path, {"cifar10-jpeg/train/zebra/0001.jpg": _jpeg(0)})
    with pytest.raises(DataError, match=r"train/zebra/0001\.jpg is of class 'zebra', expected one of airplane, "):
        read(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_a_truncated_archive_is_refused(tmp_path: Path, keep: int) -> None:
    path = _archive(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path, tmp_path / "cache")


def test_batches_that_are_not_the_published_ones_are_never_unpickled(tmp_path: Path) -> None:
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    # What a pickle that writes a file would look like; torchvision must compare the md5 before it loads.
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (batches / name).write_bytes(evil)
    with pytest.raises(DataError, match="is not CIFAR-10 as published"):
        read(tmp_path, tmp_path / "cache")
    assert not (tmp_path / "ran").exists()


def test_a_packed_archive_with_a_path_that_leads_out_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo("../escaped")
        tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(DataError, match="cannot be unpacked"):
        read(tmp_path, tmp_path / "cache")
    assert not (tmp_path / "escaped").exists()
    assert list((tmp_path / "cache").iterdir()) == []
