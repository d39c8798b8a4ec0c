"""The bundle: a directory that holds one model and everything needed to serve it, checked byte by byte.

    bundle/
      bundle.json      contracts/manifest.py: labels, input, metrics, provenance, sha256 of every other file
      model.onnx       images uint8 (batch, height, width, channels) -> probabilities float32 (batch, classes)
      golden-K.png     test images, with the probabilities that the model gave them at export
      model-int8.onnx  (or model-fp16.onnx) where `stride tune` chose it: the same contract, smaller numbers

It is written atomically and read verified: a reader sees a whole, unchanged bundle or a `BundleError`. The parts of the
document are to be had from here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from contracts.durable import replace_directory, sync_directory
from contracts.errors import BundleError
from contracts.manifest import (
    INPUT,
    MANIFEST,
    MODEL,
    OUTPUT,
    FileEntry,
    Frozen,
    Golden,
    Manifest,
    Measured,
    Provenance,
    Reference,
    Serving,
    Session,
)

__all__ = [
    "INPUT",
    "MANIFEST",
    "MODEL",
    "OUTPUT",
    "Bundle",
    "FileEntry",
    "Golden",
    "Manifest",
    "Measured",
    "Provenance",
    "Reference",
    "Serving",
    "Session",
    "check_free",
    "file_entry",
    "read",
    "replace_directory",
    "write",
]


class Bundle(Frozen):
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
        BundleError: `files` lacks model.onnx or a golden image that the manifest names, or has a name that is no
            plain file name; or something else than a bundle stands at `path`.
        OSError: the disk is full, or `path` cannot be written.
    """
    check_free(path)
    entries = {name: file_entry(data).model_dump() for name, data in files.items()}
    try:
        manifest = Manifest.model_validate({**manifest.model_dump(), "files": entries})
    except ValidationError as error:
        raise BundleError(f"bundle {path}: {_first(error)}; it was not written.") from error
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
        sync_directory(staged)
        replace_directory(staged, path)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return read(path)


def check_free(path: Path) -> None:
    """Refuse to put a bundle where something else stands: nothing, an empty directory or a bundle may be replaced.

    Raises:
        BundleError: a file, or a directory of other things.
    """
    if path.is_dir() and ((path / MANIFEST).exists() or not any(path.iterdir())):
        return
    if os.path.lexists(path):
        raise BundleError(
            f"bundle {path}: it is no bundle, and what stands there would be removed; give a new or an empty directory."
        )


def read(path: Path) -> Bundle:
    """Read a bundle and verify every file of it.

    Raises:
        BundleError: no manifest, another schema, or a file that is missing, changed or not in the manifest.
    """
    data = _read_file(path / MANIFEST)
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"bundle {path}: {_first(error)}; export it again.") from error
    _complete(path, manifest)
    for name, entry in manifest.files.items():
        _verified(path / name, entry)
    present = {item.name for item in path.iterdir()}
    if extra := sorted(present - set(manifest.files) - {MANIFEST}):
        raise BundleError(f"bundle {path}: {extra[0]!r} is not in its manifest; remove it or export again.")
    return Bundle(path=path, manifest=manifest, digest=hashlib.sha256(data).hexdigest())


def _complete(path: Path, manifest: Manifest) -> None:
    for name in (MODEL, manifest.served_file, *(golden.file for golden in manifest.golden)):
        if name not in manifest.files:
            raise BundleError(f"bundle {path}: its manifest names no {name!r}; export it again.")
    for golden in manifest.golden:
        if len(golden.probabilities) != len(manifest.labels):
            wanted = f"{len(manifest.labels)} labels"
            raise BundleError(
                f"bundle {path}: {golden.file} has {len(golden.probabilities)} probabilities for {wanted}."
            )
    if (serving := manifest.serving) is not None:
        found = [len(answer) for answer in serving.golden]
        if found != [len(manifest.labels)] * len(manifest.golden):
            wanted = f"{len(manifest.golden)} golden images and {len(manifest.labels)} labels"
            raise BundleError(f"bundle {path}: {serving.file} has {found} probabilities for {wanted}; tune it again.")
    for reference in (manifest.reference, manifest.plain.reference if manifest.plain else None):
        if reference is not None and len(reference.classes) != len(manifest.labels):
            counted = f"{len(reference.classes)} classes for {len(manifest.labels)} labels"
            raise BundleError(f"bundle {path}: its reference counts {counted}.")


def _verified(path: Path, entry: FileEntry) -> bytes:
    data = _read_file(path)
    found = hashlib.sha256(data).hexdigest()
    if found != entry.sha256:
        detail = f"sha256 {found[:12]}…, expected {entry.sha256[:12]}…"
        raise BundleError(f"bundle {path.parent}: {path.name} was changed ({detail}); export it again.")
    return data


def _read_file(path: Path) -> bytes:
    try:
        # A link may lead out of the bundle and change behind its back; a pipe would block the reader.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise BundleError(f"bundle {path.parent}: {path.name} is not a regular file; export it again.")
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror
        raise BundleError(f"bundle {path.parent}: {path.name} cannot be read ({reason}); export it again.") from error


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the document"
    return f"{MANIFEST} is not valid at {where}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
