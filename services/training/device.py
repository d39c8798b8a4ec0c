"""Where a fit runs, and how its steps are computed there: the plan. `services.training.speed` chooses it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch

from contracts.errors import DeviceError
from services.training.allocator import reusing_memory

Precision = Literal["fp32", "bf16", "fp16"]
_NOT_FACTS: Final = frozenset({"candidates"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One way to compute the steps, as it was measured."""

    name: str
    """Such as `bf16 channels_last, 2 threads`."""
    milliseconds: float | None
    """Median of a step; None where it could not be run."""
    loss: float | None
    """After a few steps from the same weights on the same images."""
    compile_seconds: float = 0.0
    """What it costs once, before the first step."""
    verdict: str = ""
    """`taken`, or why it was not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How the steps of a fit are computed."""

    device: str
    """cpu or cuda."""
    device_name: str
    device_reason: str
    precision: Precision
    channels_last: bool
    precision_reason: str
    threads: int
    """Threads that torch computes with on the CPU."""
    tf32: bool = False
    """Whether products of fp32 numbers are rounded to 10 bits on a GPU's tensor cores."""
    cuda_graph: bool = False
    """Whether a whole step is captured once and replayed, instead of launched kernel by kernel."""
    compiled: bool = False
    """Whether the forward pass goes through torch.compile."""
    features: str = "no: nothing was asked"
    """Whether the features of a held base are computed once, and why; see `services.training.features`."""
    candidates: tuple[Candidate, ...] = ()
    """What was measured; empty where nothing was to be chosen."""

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def name(self) -> str:
        """The plan's choices in a few words."""
        words: list[str] = ["tf32" if self.tf32 else self.precision]
        words += [word for word in ("channels_last", "cuda_graph", "compiled") if getattr(self, word)]
        threads = f", {self.threads} thread{'' if self.threads == 1 else 's'}" if self.device == "cpu" else ""
        return " ".join(words) + threads

    @property
    def summary(self) -> str:
        """The plan in one line: what was taken, and what that gains over plain fp32."""
        times = {candidate.name: candidate.milliseconds for candidate in self.candidates}
        taken = times.get(self.name)
        if taken is None:
            return f"{self.name}; {self.precision_reason}"
        plain = self.candidates[0].milliseconds  # the first is what a plain loop would do
        gain = f", {plain / taken:.1f}x {self.candidates[0].name}" if plain and plain > taken else ""
        return f"{self.name}: {taken:.3g} ms a step{gain} ({len(self.candidates)} measured)"

    @property
    def features_once(self) -> bool:
        """Whether the steps are taken on the head alone."""
        return self.features.startswith("yes")

    @property
    def casts(self) -> bool:
        """Whether the forward pass multiplies in a lower precision than that of the weights."""
        return self.precision != "fp32"

    def autocast(self) -> torch.autocast:
        """The context that a forward pass runs in."""
        # Weights change every step, so a cache of their casts would only be filled and dropped again.
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.casts, cache_enabled=False)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Compute with the plan's threads and rounding, and keep freed memory for the next step.

        torch and the allocator have one set of these for the whole process, so they are put back.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with ExitStack() as stack:
                stack.enter_context(reusing_memory())
                if self.device == "cuda":
                    stack.enter_context(_fp32_products("tf32" if self.tf32 else "ieee"))
                yield
        finally:
            torch.set_num_threads(threads)

    def facts(self) -> dict[str, str]:
        """The plan as strings, for tags and the model card; without the table."""
        return {key: str(value) for key, value in asdict(self).items() if key not in _NOT_FACTS}

    def to_json(self) -> dict[str, Any]:
        """The plan with its table; `from_json` gives it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        candidates = tuple(Candidate(**each) for each in content["candidates"])
        return cls(**{**content, "candidates": candidates})


@contextmanager
def _fp32_products(precision: str) -> Iterator[None]:
    # torch rounds convolutions to TF32 unless told otherwise, and matrix products only when told
    cudnn: Any = torch.backends.cudnn
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, cudnn.conv)
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = precision
    try:
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


def choose_device() -> tuple[str, str, str]:
    """The device that STRIDE_DEVICE asks for: its kind, its name, and why it was taken.

    Raises:
        DeviceError: STRIDE_DEVICE is `cuda` and there is no CUDA device, or it is none of auto, cpu, cuda.
    """
    wanted = os.environ.get("STRIDE_DEVICE") or "auto"
    if wanted not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"STRIDE_DEVICE is {wanted!r}; set it to auto, cpu or cuda.")
    cpu = _cpu_name()
    if wanted == "cpu":
        return "cpu", cpu, "STRIDE_DEVICE=cpu"
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return "cuda", name, "STRIDE_DEVICE=cuda" if wanted == "cuda" else "a CUDA device is there"
    why = "torch was built without CUDA" if torch.version.cuda is None else "torch finds no CUDA device"
    if wanted == "cuda":
        raise DeviceError(f"STRIDE_DEVICE is 'cuda', but {why}; check the driver with nvidia-smi, or set it to cpu.")
    return "cpu", cpu, why


def generators(device: str) -> list[int]:
    """The GPUs whose generators a fit on this kind of device uses; the others need not even be woken."""
    return [torch.cuda.current_device()] if device == "cuda" else []


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {torch.get_num_threads()} threads"
