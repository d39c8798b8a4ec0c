"""Which graph of a bundle this machine serves, how, and why: the one that `stride tune` chose, or plain model.onnx."""

from __future__ import annotations

from dataclasses import dataclass

from contracts import cpu
from contracts.bundle import MODEL, Manifest, Session
from services.inference.provider import Provider


@dataclass(frozen=True, slots=True)
class Plan:
    """What an engine is to load."""

    file: str
    precision: str
    """fp32, int8 or fp16."""
    reason: str
    """Why this one, in words; shown in /v1/models and in the log."""
    session: Session
    golden: tuple[tuple[float, ...], ...]
    """Its answers to the golden images of the manifest, in their order."""
    tolerance: float


def plain(manifest: Manifest, reason: str) -> Plan:
    """model.onnx with the default session, which every machine can serve."""
    golden = tuple(golden.probabilities for golden in manifest.golden)
    return Plan(MODEL, "fp32", reason, Session(), golden, manifest.tolerance)


def choose(manifest: Manifest, provider: Provider) -> Plan:
    """The tuned graph where this machine can serve it, or else model.onnx."""
    serving = manifest.serving
    if serving is None:
        return plain(manifest, "it has not been tuned")
    if serving.provider != provider.name:
        return plain(manifest, f"it was tuned for {serving.provider}, here {provider.name} runs ({provider.reason})")
    if serving.exact_int8 and (lack := cpu.lacks_int8()) is not None:
        return plain(manifest, f"its int8 graph would be slow and inexact here: {lack}")
    return Plan(serving.file, serving.precision, serving.reason, serving.session, serving.golden, serving.tolerance)
