"""MNIST and Fashion-MNIST: idx files, packed or not, from a directory that nothing is written into."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.errors import DataError
from services.training.data.standard import read


def _idx(array: NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _images(count: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def _write(root: Path, folder: str = "MNIST", *, packed: bool = True) -> Path:
    """A data set of twenty and ten images in torchvision's layout."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for prefix, count, seed in (("train", 20, 0), ("t10k", 10, 1)):
        contents = {"images-idx3": _images(count, seed), "labels-idx1": np.arange(count, dtype=np.uint8) % 10}
        for kind, array in contents.items():
            data = _idx(array)
            name = f"{prefix}-{kind}-ubyte"
            (raw / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return raw


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request goes to a port that nothing listens on: refused at once, as without a network."""
    monkeypatch.setattr("urllib.request._opener", None)  # made once a process, with the proxies of that moment
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion", "FashionMNIST")])
def test_files_are_read_packed_or_not(tmp_path: Path, name: str, folder: str, *, packed: bool) -> None:
    _write(tmp_path, folder, packed=packed)
    source = read(name, tmp_path)
    assert (source.name, len(source.labels)) == (name, 10)
    assert source.test is not None
    np.testing.assert_array_equal(source.train.images[..., 0], _images(20, 0))
    np.testing.assert_array_equal(source.test.images[..., 0], _images(10, 1))
    assert source.test.labels.tolist() == list(range(10))
    assert source.test.labels.dtype == np.int64


def test_a_read_only_directory_is_enough_and_stays_as_it_is(tmp_path: Path) -> None:
    raw = _write(tmp_path)
    before = sorted(item.name for item in raw.iterdir())
    raw.chmod(0o555)
    try:
        read("mnist", tmp_path)
        assert sorted(item.name for item in raw.iterdir()) == before
    finally:
        raw.chmod(0o755)


def test_what_was_downloaded_before_is_found_in_strides_home(tmp_path: Path, home: Path) -> None:
    _write(home / "data")
    assert len(read("mnist", tmp_path / "nowhere").train) == 20


@pytest.mark.usefixtures("no_network")
def test_without_files_and_network_the_error_says_where_they_belong(tmp_path: Path, home: Path) -> None:
    with pytest.raises(DataError) as caught:
        read("mnist", tmp_path / "nowhere")
    message = caught.value.message
    assert (
        f"data set 'mnist' is not in {tmp_path / 'nowhere'} or {home / 'data'} and could not be downloaded" in message
    )
    assert "MNIST/raw/ with train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz" in message
    assert "STRIDE_DATA" in message
    assert list((home / "data").iterdir()) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:3],
        lambda data: data[:0],
        lambda data: b"\0\0\x0d\x03" + data[4:],
        lambda data: data[:4] + b"\xff\xff\xff\xff" + data[8:],
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    raw = _write(tmp_path, packed=False)
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="train-images-idx3-ubyte is damaged"):
        read("mnist", tmp_path)


@pytest.mark.parametrize("place", [5, -3, 200])
def test_a_damaged_archive_is_named(tmp_path: Path, place: int) -> None:
    path = _write(tmp_path) / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    data[place:] = data[place:][::-1]
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte"):
        read("mnist", tmp_path)


def test_images_and_labels_that_do_not_match_are_refused(tmp_path: Path) -> None:
    raw = _write(tmp_path, packed=False)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.zeros(9, dtype=np.uint8)))
    with pytest.raises(DataError, match="t10k has 10 images and 9 labels"):
        read("mnist", tmp_path)


def test_a_label_that_no_class_has_is_refused(tmp_path: Path) -> None:
    raw = _write(tmp_path, packed=False)
    labels = np.array([0, 1, 2, 200, 4, 10], dtype=np.uint8)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.pad(labels, (0, 4))))
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte: image 3 has the label 200, expected 0-9"):
        read("mnist", tmp_path)
