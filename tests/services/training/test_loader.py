from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from contracts.errors import DataError
from services.training.data.dataset import Split
from services.training.data.rows import Rows
from services.training.loader import Resident, Source, Streamed, open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 1), dtype=np.uint8)
SPLIT = Split(images=PIXELS, labels=np.arange(50))
ORDER = torch.randperm(50, generator=torch.Generator().manual_seed(0))
SPANS = [(start, min(start + 8, 50)) for start in range(0, 50, 8)]


def rows(read: object = None) -> Rows:
    def take(places: NDArray[np.intp], out: NDArray[np.uint8]) -> None:
        out[:] = PIXELS[places]

    return Rows(read or take, np.arange(50), (3, 4, 1), [b""] * 50)  # type: ignore[arg-type]


def mapped(directory: Path) -> np.memmap[tuple[int, ...], np.dtype[np.uint8]]:
    PIXELS.tofile(directory / "pixels")
    return np.memmap(directory / "pixels", dtype=np.uint8, mode="r", shape=PIXELS.shape)


def contents(source: Source, order: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    found = list(source.rows(SPANS, order))
    assert [len(images) for images, _ in found] == [stop - start for start, stop in SPANS]
    return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found])


@pytest.mark.parametrize("order", [None, ORDER])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_array_a_mapped_file_and_rows_are_read_alike(
    threads: int, order: torch.Tensor | None, tmp_path: Path
) -> None:
    wanted = PIXELS if order is None else PIXELS[order.numpy()]
    splits = [Split(images=images, labels=SPLIT.labels) for images in (PIXELS, mapped(tmp_path), rows().as_images())]
    sources: list[Source] = [Resident.copied(SPLIT, "cpu")]
    sources += [Streamed(split, "cpu", threads=threads) for split in splits]
    for source in sources:
        images, labels = contents(source, order)
        np.testing.assert_array_equal(images.numpy(), wanted)
        assert labels.tolist() == (list(range(50)) if order is None else order.tolist())
        assert (len(source), source.image) == (50, (3, 4, 1))


def test_threads_read_ahead_but_not_the_whole_data_set() -> None:
    started: list[int] = []

    def read(places: NDArray[np.intp], out: NDArray[np.uint8]) -> None:
        started.append(len(places))
        out[:] = 0

    source = Streamed(Split(images=rows(read).as_images(), labels=SPLIT.labels), "cpu", threads=2)
    found = source.rows([(at, at + 1) for at in range(50)])
    next(found)
    assert len(started) <= 5
    assert len([next(found) for _ in range(10)]) == 10
    assert 11 <= len(started) <= 15


def test_what_a_thread_raises_reaches_the_fit_and_no_thread_is_left() -> None:
    def read(places: NDArray[np.intp], out: NDArray[np.uint8]) -> None:
        if 20 in places:
            raise DataError("file 20 of the data set cannot be decoded any more")
        out[:] = 0

    source = Streamed(Split(images=rows(read).as_images(), labels=SPLIT.labels), "cpu", threads=2)
    found = source.rows(SPANS)
    next(found), next(found)
    with pytest.raises(DataError, match="file 20"):
        next(found)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stride-loader")]


def test_an_epoch_that_is_left_early_leaves_no_thread() -> None:
    found = Streamed(SPLIT, "cpu").rows(SPANS)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stride-loader")]


def test_the_size_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_source(SPLIT, "cpu"), Resident)
    on_disk = Split(images=mapped(tmp_path), labels=SPLIT.labels)
    assert isinstance(open_source(on_disk, "cpu"), Streamed)
    assert "read from disk" in open_source(on_disk, "cpu").reason
    monkeypatch.setenv("STRIDE_RESIDENT", "0")
    streamed = open_source(SPLIT, "cpu")
    assert isinstance(streamed, Streamed)
    assert "more than the 0 GB that may stay on the cpu" in streamed.reason


def test_an_array_on_the_cpu_is_not_copied() -> None:
    images, _ = next(open_source(SPLIT, "cpu").rows([(0, 50)]))
    assert images.data_ptr() == PIXELS.ctypes.data


@pytest.mark.gpu
def test_what_does_not_fit_on_a_gpu_is_streamed_and_what_is_on_disk_and_fits_is_copied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = Split(images=mapped(tmp_path), labels=SPLIT.labels)
    for split in (SPLIT, on_disk):
        resident = open_source(split, "cuda")
        assert isinstance(resident, Resident)
        assert torch.equal(contents(resident, ORDER)[0].cpu(), torch.from_numpy(PIXELS)[ORDER])
    monkeypatch.setenv("STRIDE_RESIDENT", "100")
    assert isinstance(open_source(SPLIT, "cuda"), Streamed)
