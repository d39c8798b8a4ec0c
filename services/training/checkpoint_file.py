"""One checkpoint on disk: a safetensors file, its state as JSON in the file's metadata, its sha256 in the file's name.

000003-00000120.<sha256>.safetensors     three epochs are done, and 120 batches of the fourth

It is written beside its name, flushed to the disk, and only then given its name: what carries a name is whole, unless
the disk has changed it since, which its sha256 shows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from contracts.durable import sync_directory

_NAME: Final = re.compile(r"(\d{6,})-(\d{8,})\.([0-9a-f]{64})\.safetensors")
_TYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The state of a fit between two steps."""

    epoch: int
    """How many epochs are done."""
    batch: int
    """How many batches of the next one are done."""
    tensors: dict[str, Tensor]
    """On any device; nobody changes them any more."""
    state: dict[str, Any]
    """All else; JSON."""


def position(path: Path) -> tuple[int, int] | None:
    """The epoch and the batch in a checkpoint's name; None where it is no checkpoint's name."""
    found = _NAME.fullmatch(path.name)
    return (int(found[1]), int(found[2])) if found else None


def write(directory: Path, snapshot: Snapshot, identity: str) -> Path:
    """Write a checkpoint; its tensors are copied to the CPU one by one.

    Args:
        directory: Where to; it must be there.
        snapshot: What to write.
        identity: Of recipe, data and code; asked for when it is read.

    Raises:
        OSError: the disk is full, or cannot be written; nothing is left of the checkpoint then.
    """
    tensors = dict(sorted(snapshot.tensors.items(), key=lambda item: -item[1].element_size()))  # keeps them aligned
    header = _header(tensors, snapshot, identity)
    staged = directory / f".{os.getpid()}.staged"
    digest = hashlib.sha256()
    try:
        # By hand: safetensors' own writer copies everything twice and holds the interpreter's lock meanwhile, so that
        # the fit would wait for it. `read` reads with safetensors.
        with staged.open("wb", buffering=0) as file:
            for data in _parts(header, tensors.values()):
                digest.update(data)
                _write_all(file.fileno(), data)
            os.fsync(file.fileno())
        name = f"{snapshot.epoch:06}-{snapshot.batch:08}.{digest.hexdigest()}.safetensors"
        path = staged.replace(directory / name)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    sync_directory(directory)  # the name is on the disk, too
    return path


def read(path: Path, identity: str) -> Snapshot:
    """Read a checkpoint, verified; its tensors are on the CPU, each with the strides that it had.

    Raises:
        OSError: it cannot be read.
        ValueError: it was damaged, or is of another recipe, data or code.
    """
    from safetensors import SafetensorError, safe_open

    found = _NAME.fullmatch(path.name)
    if found is None:
        raise ValueError("its name is not that of a checkpoint")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != found[3]:
            raise ValueError("its content does not match its sha256")
    try:
        with safe_open(path, framework="pt", device="cpu") as opened:
            content = json.loads(opened.metadata()["content"])
            # Copied: what it gives is the file's own memory, which is gone or another one when the file is
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"it is no safetensors file: {error}") from error
    if content["identity"] != identity:
        raise ValueError("it is of another recipe, data or code")
    tensors |= {name: _strided(tensors[name], strides) for name, strides in content["strides"].items()}
    return Snapshot(epoch=int(found[1]), batch=int(found[2]), tensors=tensors, state=content["state"])


def _header(tensors: Mapping[str, Tensor], snapshot: Snapshot, identity: str) -> bytes:
    """The length of the header, little-endian, and the header: JSON padded to eight bytes."""
    # Fused optimizers walk a weight and its moments in the order of memory: channels_last moments must stay so.
    strides = {name: tensor.stride() for name, tensor in tensors.items() if not _usual(tensor)}
    content = {"identity": identity, "strides": strides, "state": snapshot.state}
    entries: dict[str, Any] = {"__metadata__": {"content": json.dumps(content)}}
    start = 0
    for name, tensor in tensors.items():
        stop = start + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _TYPES[tensor.dtype], "shape": tensor.shape, "data_offsets": (start, stop)}
        start = stop
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _usual(tensor: Tensor) -> bool:
    """Whether the strides are those that a new tensor of its shape has; axes of length one count."""
    return tensor.stride() == tuple(math.prod(map(_at_least_one, tensor.shape[i + 1 :])) for i in range(tensor.dim()))


def _at_least_one(length: int) -> int:
    return max(1, length)


def _strided(tensor: Tensor, strides: list[int]) -> Tensor:
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _parts(header: bytes, tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    yield header
    yield from map(_bytes, tensors)


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's values, row by row; the memory of a contiguous one on the CPU is not copied."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:  # the kernel may take less than all, above all where the disk is nearly full
        rest = rest[os.write(descriptor, rest) :]
