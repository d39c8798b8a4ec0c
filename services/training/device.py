"""Where a fit runs and in which precision, each with the reason for it."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

import torch

from contracts.errors import DeviceError, RecipeError

Precision = Literal["fp32", "bf16", "fp16"]
_GAIN: Final = 1.1
"""How much faster than fp32 a lower precision must be measured to be taken."""
_MEASURED: Final = ("precision", "channels_last", "precision_reason", "threads")


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

    @contextmanager
    def using_threads(self) -> Iterator[None]:
        """Compute with the plan's threads; torch has one number for the whole process, so it is put back."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

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
    """Choose device, threads, precision and memory format for a fit.

    On the CPU one thread is timed against all of them, on the run's own shapes: small networks lose with more, above
    all where something else runs beside them. Then, for `auto`, the precisions are timed and the fastest is taken; a
    lower one must gain 10%. The answer is kept in `cache` under `key`, so that the same fit on the same machine is
    computed the same way again.

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
    given = Plan(
        device=device,
        device_name=name,
        device_reason=reason,
        precision="fp32" if precision == "auto" else precision,
        channels_last=True,
        precision_reason="the recipe says so",
        threads=torch.get_num_threads(),
    )
    if precision != "auto" and (device == "cuda" or given.threads == 1):
        return given
    machine = f"{name}|{torch.__version__}|{given.threads}|{precision}|{key}"
    kept = cache / "plans" / f"{sha256(machine.encode()).hexdigest()[:32]}.json"
    if (answer := _remembered(kept)) is not None:
        return replace(given, **answer)
    plan = _measure(given, precision, trial, seconds)
    _remember(kept, plan)
    return plan


def _measure(given: Plan, precision: str, trial: Callable[[Plan], Callable[[], None]], seconds: float) -> Plan:
    def rate(plan: Plan) -> float:
        with plan.using_threads():
            return steps_per_second(trial(plan), plan.device, seconds)

    rates = {given: rate(given)}
    if given.device == "cpu" and given.threads > 1:
        alone = replace(given, threads=1)
        rates[alone] = rate(alone)
    base = max(rates, key=lambda plan: rates[plan])
    if precision == "auto":
        for candidate in (replace(base, channels_last=False), replace(base, precision="bf16")):
            rates[candidate] = rate(candidate)
    best_full = max((plan for plan in rates if plan.precision == given.precision), key=lambda plan: rates[plan])
    best = max(rates, key=lambda plan: rates[plan])
    chosen = best if rates[best] > _GAIN * rates[best_full] else best_full
    table = ", ".join(f"{_label(plan)} {rate:.1f}" for plan, rate in rates.items())
    why = f"measured steps/s: {table}; " + (
        "the fastest is taken, fp32 unless another gains 10%"
        if precision == "auto"
        else "the recipe says the precision"
    )
    return replace(chosen, precision_reason=why)


def _remembered(kept: Path) -> dict[str, Any] | None:
    try:
        answer = json.loads(kept.read_text())
        return {key: answer[key] for key in _MEASURED}
    except (OSError, ValueError, KeyError):  # not measured yet, or half written: it is measured again
        return None


def _remember(kept: Path, plan: Plan) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    staged = kept.with_suffix(f".{os.getpid()}")
    staged.write_text(json.dumps({key: getattr(plan, key) for key in _MEASURED}))
    staged.replace(kept)


def _label(plan: Plan) -> str:
    layout = " channels_last" if plan.channels_last else ""
    threads = f" {plan.threads} threads" if plan.device == "cpu" and plan.threads > 1 else ""
    return plan.precision + layout + (threads or (" 1 thread" if plan.device == "cpu" else ""))


def steps_per_second(step: Callable[[], None], device: str, seconds: float) -> float:
    """The median rate of a training step over `seconds` and three calls at least, after three that are not timed."""

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
