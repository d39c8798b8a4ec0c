"""Where a fit runs and in which precision, each with the reason for it."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

import torch

from contracts.errors import DeviceError, RecipeError

Precision = Literal["fp32", "bf16", "fp16"]
_GAIN: Final = 1.1
"""How much faster than fp32 a lower precision must be measured to be taken."""


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

    @property
    def dtype(self) -> torch.dtype:
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> torch.autocast:
        """The context that a forward pass runs in."""
        # Weights change every step, so a cache of their casts would only be filled and dropped again.
        return torch.autocast(self.device, dtype=self.dtype, enabled=self.precision != "fp32")

    def facts(self) -> dict[str, str]:
        """The plan as strings, for tags and the model card."""
        return {key: str(value) for key, value in asdict(self).items()}


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


def choose_plan(
    precision: Literal["auto", "fp32", "bf16", "fp16"],
    *,
    trial: Callable[[Plan], Callable[[], None]],
    key: str,
    cache: Path,
    seconds: float = 0.3,
) -> Plan:
    """Choose device, precision and memory format for a fit.

    `auto` times the candidates on the run's own shapes and takes the fastest; a lower precision must gain 10%. The
    answer is kept in `cache` under `key`, so that the same fit on the same machine is computed the same way again.

    Args:
        precision: As the recipe says.
        trial: Makes, for a plan, a function that runs one training step on throw-away copies.
        key: Identifies what is timed (network, shapes, batch size).
        cache: A directory for the measurements.
        seconds: Time spent on each candidate after its warm-up.

    Raises:
        DeviceError: see `choose_device`.
        RecipeError: fp16 was asked for without a CUDA device.
    """
    device, name, reason = choose_device()
    if precision == "fp16" and device == "cpu":
        raise RecipeError("fit.precision is 'fp16', which needs a CUDA device; set it to auto, bf16 or fp32.")

    def plan(precision: Precision, channels_last: bool, why: str) -> Plan:
        return Plan(
            device=device,
            device_name=name,
            device_reason=reason,
            precision=precision,
            channels_last=channels_last,
            precision_reason=why,
        )

    if precision != "auto":
        return plan(precision, True, "the recipe says so")
    machine = f"{name}|{torch.__version__}|{torch.get_num_threads()}|{key}"
    kept = cache / "precision" / f"{sha256(machine.encode()).hexdigest()[:32]}.json"
    candidates: list[tuple[Precision, bool]] = [("fp32", False), ("fp32", True), ("bf16", True)]
    if (answer := _remembered(kept)) is not None:
        return plan(*answer)
    rates = {c: _steps_per_second(trial(plan(*c, "candidate")), device, seconds) for c in candidates}
    best = _fastest(rates)
    table = ", ".join(f"{_label(c)} {rate:.1f}" for c, rate in rates.items())
    chosen = plan(*best, f"measured steps/s: {table}; fastest taken, fp32 unless another gains 10%")
    kept.parent.mkdir(parents=True, exist_ok=True)
    staged = kept.with_suffix(f".{os.getpid()}")
    fields = {"precision": best[0], "channels_last": best[1], "reason": chosen.precision_reason}
    staged.write_text(json.dumps(fields))
    staged.replace(kept)
    return chosen


def _remembered(kept: Path) -> tuple[Precision, bool, str] | None:
    try:
        answer = json.loads(kept.read_text())
        return answer["precision"], answer["channels_last"], answer["reason"]
    except (OSError, ValueError, KeyError):  # not measured yet, or half written: it is measured again
        return None


def _fastest(rates: dict[tuple[Precision, bool], float]) -> tuple[Precision, bool]:
    full = {c: rate for c, rate in rates.items() if c[0] == "fp32"}
    best_full = max(full, key=lambda c: full[c])
    best = max(rates, key=lambda c: rates[c])
    return best if rates[best] > _GAIN * rates[best_full] else best_full


def _label(candidate: tuple[Precision, bool]) -> str:
    return candidate[0] + (" channels_last" if candidate[1] else "")


def _steps_per_second(step: Callable[[], None], device: str, seconds: float) -> float:
    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):  # warm-up: kernels are chosen and compiled, caches filled
        step()
    synchronize()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {torch.get_num_threads()} threads"
