"""The bundle: a directory that holds one model and everything needed to serve it, checked byte by byte.

    bundle/
      bundle.json      this module's Manifest: labels, input, metrics, provenance, sha256 of every other file
      model.onnx       images uint8 (batch, height, width, channels) -> probabilities float32 (batch, classes)
      golden-K.png     test images, with the probabilities that the model gave them at export

It is written atomically and read verified: a reader sees a whole, unchanged bundle or a `BundleError`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.errors import BundleError
from contracts.images import ImageSpec

MANIFEST: Final = "bundle.json"
MODEL: Final = "model.onnx"
INPUT: Final = "images"
OUTPUT: Final = "probabilities"

_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(_Frozen):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Golden(_Frozen):
    """A test image and the answer it had at export; a server answers it before it says that it is ready."""

    file: _FileName
    probabilities: tuple[float, ...]


class Provenance(_Frozen):
    """Where a model comes from."""

    run_id: str
    """The MLflow run that fitted it."""
    recipe: str
    recipe_hash: str
    data_fingerprint: str
    test_fingerprint: str
    """The fingerprint of the test split alone: two models are comparable where it is equal."""
    code_version: str
    created_at: str
    """UTC, ISO 8601."""
    versions: dict[str, str] = {}
    """Of python, torch, onnx and onnxruntime at export."""


class Manifest(_Frozen):
    """bundle.json."""

    schema_version: Literal[1] = 1
    name: str
    """The registered model's name."""
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    """The class names, in the order of the graph's output."""
    input: ImageSpec
    tolerance: Annotated[float, Field(gt=0)]
    """Largest difference of a probability between torch and onnxruntime that the export was allowed."""
    metrics: dict[str, float]
    """Of the test split, as served: `test/accuracy`, `test/loss`, …"""
    parity: dict[str, float] = {}
    """What the proof saw: images, largest difference, differing argmax."""
    provenance: Provenance
    golden: tuple[Golden, ...] = ()
    files: dict[_FileName, FileEntry]

    def digest(self) -> str:
        """sha256 of bundle.json as written: it pins every file of the bundle."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        return self.model_dump_json(indent=2).encode() + b"\n"


class Bundle(_Frozen):
    """A bundle that has been read and verified."""

    path: Path
    manifest: Manifest
    digest: str
    """sha256 of bundle.json."""

    def read(self, name: str) -> bytes:
        """The bytes of a file, verified against the manifest once more.

        Raises:
            BundleError: not in the manifest, missing, or changed since it was verified.
        """
        if name not in self.manifest.files:
            raise BundleError(f"bundle {self.path}: no file {name!r} in its manifest.")
        return _verified(self.path / name, self.manifest.files[name])


def file_entry(data: bytes) -> FileEntry:
    return FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def write(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle so that `path` either holds all of it or is as it was.

    `manifest.files` is replaced by the entries of `files`. A bundle that stands at `path` is replaced.

    Raises:
        BundleError: `files` lacks model.onnx or a golden image that the manifest names.
        OSError: the disk is full, or `path` cannot be written.
    """
    manifest = manifest.model_copy(update={"files": {name: file_entry(data) for name, data in files.items()}})
    manifest = Manifest.model_validate(manifest.model_dump())  # model_copy does not validate
    _complete(path, manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        for name, data in {**files, MANIFEST: manifest.to_bytes()}.items():
            with (staged / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        staged.chmod(0o755)
        _sync_directory(staged)
        replace_directory(staged, path)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return read(path)


def read(path: Path) -> Bundle:
    """Read a bundle and verify every file of it.

    Raises:
        BundleError: no manifest, another schema, or a file that is missing, changed or not in the manifest.
    """
    source = path / MANIFEST
    try:
        data = source.read_bytes()
    except OSError as error:
        raise BundleError(f"bundle {path}: {MANIFEST} cannot be read ({error.strerror}); export it again.") from error
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BundleError(f"bundle {path}: {MANIFEST} is not valid at {where}: {first['msg']}.") from error
    _complete(path, manifest)
    for name, entry in manifest.files.items():
        _verified(path / name, entry)
    present = {item.name for item in path.iterdir()}
    if extra := sorted(present - set(manifest.files) - {MANIFEST}):
        raise BundleError(f"bundle {path}: {extra[0]!r} is not in its manifest; remove it or export again.")
    return Bundle(path=path, manifest=manifest, digest=hashlib.sha256(data).hexdigest())


def replace_directory(staged: Path, path: Path) -> None:
    """Move `staged` to `path`, the directory that stands there aside and away; both on one file system."""
    old: Path | None = None
    if path.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
        path.rename(old / "bundle")
    staged.rename(path)
    _sync_directory(path.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _complete(path: Path, manifest: Manifest) -> None:
    for name in (MODEL, *(golden.file for golden in manifest.golden)):
        if name not in manifest.files:
            raise BundleError(f"bundle {path}: its manifest names no {name!r}; export it again.")
    for golden in manifest.golden:
        if len(golden.probabilities) != len(manifest.labels):
            wanted = f"{len(manifest.labels)} labels"
            raise BundleError(f"bundle {path}: {golden.file} has {len(golden.probabilities)} probabilities for {wanted}.")


def _verified(path: Path, entry: FileEntry) -> bytes:
    try:
        if path.is_symlink():
            raise BundleError(f"bundle {path.parent}: {path.name} is a link, not a file; export it again.")
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror
        raise BundleError(f"bundle {path.parent}: {path.name} cannot be read ({reason}); export it again.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        detail = f"sha256 {found[:12]}…, expected {entry.sha256[:12]}…"
        raise BundleError(f"bundle {path.parent}: {path.name} was changed ({detail}); export it again.")
    return data


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
