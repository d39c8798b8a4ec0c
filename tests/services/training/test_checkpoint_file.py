from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from services.training import checkpoint_file
from services.training.checkpoint_file import Snapshot, position, read, write


def snapshot(epoch: int = 3, batch: int = 120) -> Snapshot:
    torch.manual_seed(0)
    tensors = {
        "weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "one by one": torch.randn(8, 3, 1, 1).to(memory_format=torch.channels_last),
        "one channel": torch.randn(8, 1, 3, 3).to(memory_format=torch.channels_last),
        "half": torch.randn(5, 3).to(torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "step": torch.tensor(7.0),
        "count": torch.tensor(2**40 + 1),
        "none": torch.empty(0, 4),
        "bytes": torch.arange(5056, dtype=torch.int64).to(torch.uint8),
        "double": torch.tensor([0.1, 1e-300], dtype=torch.float64),
    }
    return Snapshot(epoch=epoch, batch=batch, tensors=tensors, state={"history": [{"loss": 0.1 + 0.2}], "step": 9})


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """While it is entered the kernel takes no more than `size` bytes for a file, as a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_written_is_read_to_the_bit_with_the_strides_that_it_had(tmp_path: Path) -> None:
    given = snapshot()
    found = read(write(tmp_path, given, "ours"), "ours")
    assert (found.epoch, found.batch, found.state) == (3, 120, given.state)
    assert found.tensors.keys() == given.tensors.keys()
    for name, tensor in given.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype, name
        assert found.tensors[name].stride() == tensor.stride(), name
        assert torch.equal(found.tensors[name], tensor), name


def test_any_safetensors_reader_reads_it(tmp_path: Path) -> None:
    given = snapshot()
    path = write(tmp_path, given, "ours")
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("weight"), given.tensors["weight"])
        assert json.loads(file.metadata()["content"])["state"]["step"] == 9
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_that_was_read_does_not_need_its_file_any_more(tmp_path: Path) -> None:
    path = write(tmp_path, snapshot(), "ours")
    found = read(path, "ours")
    with path.open("r+b") as file:
        file.truncate(0)
    path.unlink()
    assert torch.equal(found.tensors["bytes"], snapshot().tensors["bytes"])


@pytest.mark.parametrize("place", [0, 9, 500, -5000, -1])
def test_one_changed_byte_is_noticed_wherever_it_is(place: int, tmp_path: Path) -> None:
    path = write(tmp_path, snapshot(), "ours")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its sha256"):
        read(path, "ours")


def test_a_cut_off_file_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, snapshot(), "ours")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="does not match its sha256"):
        read(path, "ours")


def test_a_checkpoint_of_another_fit_is_not_taken(tmp_path: Path) -> None:
    path = write(tmp_path, snapshot(), "theirs")
    with pytest.raises(ValueError, match="of another recipe, data or code"):
        read(path, "ours")


def test_a_full_disk_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    good = write(tmp_path, snapshot(), "ours")
    with no_file_above(1000), pytest.raises(OSError, match="File too large"):
        write(tmp_path, snapshot(epoch=4), "ours")
    assert list(tmp_path.iterdir()) == [good]


def test_positions_are_read_from_names_and_from_nothing_else(tmp_path: Path) -> None:
    assert position(write(tmp_path, snapshot(12, 34), "ours")) == (12, 34)
    for name in ("lock", "run.json", ".1.staged", "000003-00000120.safetensors"):
        assert position(Path(name)) is None


def test_every_type_that_a_fit_may_hold_has_its_name() -> None:
    kinds = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    ours = {kind for kind in kinds if not kind.is_complex and str(kind).removeprefix("torch.") in _KINDS}
    assert ours == set(checkpoint_file._TYPES)


_KINDS = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
