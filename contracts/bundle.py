"""The bundle: a directory that holds one model and everything needed to serve it, checked byte by byte.

    bundle/
      bundle.json      this module's Manifest: labels, input, metrics, provenance, sha256 of every other file
      model.onnx       images uint8 (batch, height, width, channels) -> probabilities float32 (batch, classes)
      golden-K.png     test images, with the probabilities that the model gave them at export
      model-int8.onnx  (or model-fp16.onnx) where `stride tune` chose it: the same contract, smaller numbers

It is written atomically and read verified: a reader sees a whole, unchanged bundle or a `BundleError`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from contracts.errors import BundleError
from contracts.image_spec import ImageSpec

MANIFEST: Final = "bundle.json"
MODEL: Final = "model.onnx"
INPUT: Final = "images"
OUTPUT: Final = "probabilities"


def _not_the_manifest(name: str) -> str:
    if name == MANIFEST:
        raise ValueError(f"{MANIFEST} is the manifest itself")
    return name


# No separators and no leading dot, so that no name leads out of the bundle; bundle.json cannot hold its own digest.
_FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"), AfterValidator(_not_the_manifest)]


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


class Reference(_Frozen):
    """How the served graph answered the test images, in counts: serving tells drift by it."""

    classes: tuple[Annotated[int, Field(ge=0)], ...]
    """Test images by predicted class, in the order of the labels."""
    edges: tuple[float, ...]
    """The inner edges of the bins of the largest probability, rising; a bin begins with its lower edge."""
    confidence: tuple[Annotated[int, Field(ge=0)], ...]
    """Test images by bin, one more than the edges."""

    @model_validator(mode="after")
    def _counts_the_same_images(self) -> Self:
        if any(not low < high for low, high in pairwise(self.edges)):
            raise ValueError("the edges do not rise")
        if len(self.confidence) != len(self.edges) + 1:
            raise ValueError(f"{len(self.edges)} edges make {len(self.edges) + 1} bins, not {len(self.confidence)}")
        if sum(self.classes) != sum(self.confidence) or not sum(self.classes):
            raise ValueError("classes and confidence must count the same images, at least one")
        return self


class Measured(_Frozen):
    """How a graph did on the test images."""

    metrics: dict[str, float] = {}
    reference: Reference | None = None


class Session(_Frozen):
    """How onnxruntime is to run a graph."""

    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """No more than these, where a worker has more cores; None takes them all."""
    optimization: Literal["extended", "all"] = "all"
    """`all` also changes the layout of the tensors."""
    convolution_search: Literal["HEURISTIC", "EXHAUSTIVE"] = "HEURISTIC"
    """On CUDA: how cuDNN chooses the algorithm of a convolution."""
    buckets: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(max_length=64)] = ()
    """On CUDA: the batch sizes that batches are filled up to, rising; none takes the powers of two."""

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if any(low >= high for low, high in pairwise(self.buckets)):
            raise ValueError(f"buckets {list(self.buckets)} do not rise")
        return self


class Serving(_Frozen):
    """The graph that is served and how, as `stride tune` measured it; where it cannot be, model.onnx is served."""

    file: _FileName
    precision: Literal["fp32", "int8", "fp16"]
    provider: Literal["CPUExecutionProvider", "CUDAExecutionProvider"]
    """Of onnxruntime; on another one model.onnx is served with the default session."""
    exact_int8: bool = False
    """The graph relies on products of 8-bit integers that do not saturate (contracts.cpu)."""
    session: Session = Session()
    golden: tuple[tuple[float, ...], ...]
    """What this graph answered to the manifest's golden images, in their order."""
    tolerance: Annotated[float, Field(gt=0)]
    """Largest difference of a golden probability between two machines; rounding to 8 bits makes it a large one."""
    reason: str
    """Why this one, with the figures, in one clause."""
    gain: float
    """The share of model.onnx's time that it saves; 0 where model.onnx with the default session was kept."""
    validation: dict[str, float] = {}
    """What the gate of accuracy saw: images, accuracy_before, accuracy_after, agreement, …"""
    machine: str
    """Where it was measured."""


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
    reference: Reference | None = None
    """None in bundles of before it was written: their drift is not told."""
    serving: Serving | None = None
    """None: never tuned, model.onnx is served."""
    plain: Measured | None = None
    """Of model.onnx, where `metrics` and `reference` are those of another graph and it was kept."""
    files: dict[_FileName, FileEntry]

    @property
    def served_file(self) -> str:
        """The graph that `metrics` were measured on, and that is served where the machine can."""
        return self.serving.file if self.serving else MODEL

    def measured(self, file: str) -> Measured:
        """How the graph in `file` did on the test images; nothing where that is not known."""
        if file == self.served_file:
            return Measured(metrics=self.metrics, reference=self.reference)
        return (self.plain or Measured()) if file == MODEL else Measured()

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
        _sync_directory(staged)
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


def replace_directory(staged: Path, path: Path) -> None:
    """Move `staged` to `path` and remove the directory that stood there; both on one file system.

    On Linux the two are exchanged in one step, so that even a kill leaves the old or the new one at `path`. Elsewhere
    the old one is moved aside first, and back if the new one cannot take its place.
    """
    if not path.exists():
        staged.rename(path)
    elif _exchange(staged, path):
        shutil.rmtree(staged, ignore_errors=True)
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent))
        path.rename(aside / "bundle")
        try:
            staged.rename(path)
        except OSError:
            (aside / "bundle").rename(path)
            aside.rmdir()
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync_directory(path.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step, where the system can; Python has no call for it."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <linux/fs.h>
    return bool(rename(here, os.fsencode(first.absolute()), here, os.fsencode(second.absolute()), exchange) == 0)


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


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
