"""What the search for the graph to serve has seen: a row for each candidate, and the one that was chosen."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pipelines.candidates import Candidate


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Of a candidate on the validation images, beside fp32."""

    accuracy: float
    loss: float
    """Mean negative log probability of the right class."""
    agreement: float
    """The share of images with the same best class as in fp32."""
    difference: float
    """The mean over the images of the largest difference of a probability."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the comparison."""

    name: str
    precision: str
    threads: int
    milliseconds: float | None = None
    """A single image takes: processor time on a CPU, wall time on CUDA and where threads are compared."""
    milliseconds_in_batch: float | None = None
    """An image in a large batch takes."""
    gain: float | None = None
    """The share of fp32's time that is saved."""
    bytes: int | None = None
    accuracy: float | None = None
    loss: float | None = None
    agreement: float | None = None
    difference: float | None = None
    verdict: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """What the search came to."""

    chosen: Candidate
    """With the threads and buckets of its session."""
    reason: str
    gain: float
    before: Accuracy
    after: Accuracy
    images: int
    """Validation images."""
    rows: tuple[Row, ...]
