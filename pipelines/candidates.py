"""The graphs that may take the place of the fp32 one: int8 on a CPU, fp16 on CUDA, and other options of the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from contracts import cpu
from contracts.bundle import Session
from contracts.image_spec import ImageSpec
from pipelines import quantize
from pipelines.quantize import Calibration

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "int8", "fp16"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Candidate:
    """A graph and how it is run."""

    name: str
    precision: Precision
    model: bytes = field(repr=False)
    """The ONNX file."""
    session: Session = field(default_factory=Session)
    calibration: Calibration | None = None
    """How the scales of an int8 graph were taken."""
    first_layer: bool = True
    """Whether the first layer of an int8 graph is int8 too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """A candidate that could not be made; never an error, because the fp32 graph is there."""

    name: str
    precision: Precision
    reason: str


class Maker:
    """Makes the candidates for one fp32 graph."""

    def __init__(self, model: bytes, *, image: ImageSpec, train: NDArray[np.uint8], cuda: bool) -> None:
        """Keep what the candidates are made of.

        Args:
            model: The fp32 graph, an ONNX file.
            image: Its input.
            train: Training images (n, h, w, c), where int8 takes its scales from.
            cuda: For CUDA; there fp16 takes the place of int8.
        """
        self.base = Candidate(name="fp32", precision="fp32", model=model)
        self._image = image
        self._images = quantize.calibration_images(train)
        self._cuda = cuda
        self._prepared: onnx.ModelProto | None = None
        self._ranges: dict[Calibration, Any] = {}

    def others(self) -> Iterator[Candidate | Failed]:
        """All but the fp32 graph in the default session."""
        if self._cuda:
            exhaustive = Session(convolution_search="EXHAUSTIVE")
            yield replace(self.base, name="fp32, exhaustive search", session=exhaustive)
            half = self._attempt("fp16", "fp16", lambda: quantize.fp16(self.base.model, image=self._image))
            yield half
            if isinstance(half, Candidate):
                yield replace(half, name="fp16, exhaustive search", session=exhaustive)
            return
        yield replace(self.base, name="fp32, plain layout", session=Session(optimization="extended"))
        for first_layer in (True, False):
            yield self.int8("minmax", first_layer=first_layer)

    def int8(self, calibration: Calibration, *, first_layer: bool) -> Candidate | Failed:
        """The int8 graph with scales taken that way."""
        name = "int8" if first_layer else "int8, first layer fp32"
        name = name if calibration == "minmax" else f"{name}, {calibration}"
        made = self._attempt(name, "int8", lambda: self._int8(calibration, first_layer))
        return replace(made, calibration=calibration, first_layer=first_layer) if isinstance(made, Candidate) else made

    def _int8(self, calibration: Calibration, first_layer: bool) -> bytes:
        if self._prepared is None:
            self._prepared = quantize.prepare(self.base.model)
        if calibration not in self._ranges:
            self._ranges[calibration] = quantize.calibrate(self._prepared, self._images, calibration)
        return quantize.int8(
            self._prepared,
            self._ranges[calibration],
            image=self._image,
            first_layer=first_layer,
            exact=cpu.lacks_int8() is None,
        )

    def _attempt(self, name: str, precision: Precision, make: Callable[[], bytes]) -> Candidate | Failed:
        try:
            return replace(self.base, name=name, precision=precision, model=make())
        except Exception as error:  # noqa: BLE001 - onnxruntime's tools raise what comes; it stands in the table
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return Failed(name=name, precision=precision, reason=f"cannot be made: {line[:200]}")
