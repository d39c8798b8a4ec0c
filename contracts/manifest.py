"""bundle.json, the document of a bundle: labels, input, metrics, provenance, how it is served, sha256 of every file."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

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


class Frozen(BaseModel):
    """Part of the document: complete, checked, not changed any more."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class FileEntry(Frozen):
    """A file of the bundle."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


class Golden(Frozen):
    """A test image and the answer it had at export; a server answers it before it says that it is ready."""

    file: _FileName
    probabilities: tuple[float, ...]


class Provenance(Frozen):
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


class Reference(Frozen):
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


class Measured(Frozen):
    """How a graph did on the test images."""

    metrics: dict[str, float] = {}
    reference: Reference | None = None


class Session(Frozen):
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


class Serving(Frozen):
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


class Manifest(Frozen):
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
