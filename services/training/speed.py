"""Which way of computing the steps is the fastest here: measured on the run's own shapes, and remembered.

| device | candidates |
|---|---|
| CPU | fp32, fp32 channels_last and bf16 channels_last; then the fastest, and the fastest in fp32, on one thread |
| CUDA | fp32, fp32 channels_last, tf32 and bf16 channels_last; then the fastest of them as one CUDA graph |
| either | the fastest of those through torch.compile, where the steps to come can pay for compiling |

A recipe that names its precision leaves the threads, the CUDA graph and compiling to be measured. Candidates take turns
step by step, so that what else runs on the machine slows all of them alike, and the median counts. The plain loop
(fp32, contiguous, all threads) is among them, so what is taken is never slower; a lower precision must gain a tenth,
and must come to the loss that the plain loop comes to.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

import torch

from contracts.errors import RecipeError
from services.training.device import Plan, choose_device
from services.training.measurement import Measurement, Trial

_LOG = logging.getLogger(__name__)
_LAYOUT: Final = 2
"""Raised when the meaning of what is remembered changes."""


def choose_plan(
    precision: Literal["auto", "fp32", "bf16", "fp16"],
    *,
    trial: Trial,
    key: str,
    cache: Path,
    steps: int = 0,
    weights: int = 0,
    seconds: float = 1.5,
    workers: int = 1,
) -> Plan:
    """Choose how a fit is computed on the device that STRIDE_DEVICE asks for.

    The answer is kept in `cache` under `key`, so that the same fit on the same machine is computed the same way again.

    Args:
        precision: As the recipe says.
        trial: See `Trial`.
        key: Identifies what is timed (network, shapes, batch size).
        cache: A directory for the measurements.
        steps: How many the fit will take; compiling must pay within them.
        weights: Bytes of one copy of the network.
        seconds: Of timed steps in all; each candidate takes two steps at least.
        workers: How many take a step together; what they exchange in it can be neither captured nor compiled.

    Raises:
        DeviceError: see `choose_device`.
        RecipeError: fp16 was asked for without a CUDA device, or STRIDE_COMPILE is none of auto, 0 and 1.
    """
    device, name, reason = choose_device()
    together = workers > 1
    compiling = _compiling(device) and not together
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
    first = _first(given, free=precision == "auto")
    if len(first) == 1 and not compiling and device == "cpu" and given.threads == 1:
        return given
    machine = f"{_LAYOUT}|{name}|{torch.__version__}|{given.threads}|{precision}|{compiling}|{workers}|{key}"
    kept = cache / "plans" / f"{sha256(machine.encode()).hexdigest()[:32]}.json"
    if (answer := _remembered(kept)) is not None:
        return replace(answer, device_reason=reason)
    measurement = Measurement(trial, device, seconds, weights)
    plan = measurement.choose(first, steps=steps, compiling=compiling, capturing=not together)
    free = "the fastest that comes to fp32's loss; a lower precision must gain 10%"
    why = f"measured: {free if precision == 'auto' else 'the recipe says the precision'}"
    plan = replace(plan, precision_reason=why)
    _remember(kept, plan)
    return plan


def _first(given: Plan, *, free: bool) -> list[Plan]:
    """The candidates that are timed at first, a plain loop in front."""
    if not free:
        plans = [given]
    elif given.device == "cuda":
        plans = [
            replace(given, channels_last=False),
            given,
            replace(given, tf32=True),
            replace(given, precision="bf16"),
        ]
    else:
        plans = [replace(given, channels_last=False), given, replace(given, precision="bf16")]
    return plans


def _compiling(device: str) -> bool:
    """Whether torch.compile is tried: on CUDA where Triton can compile, on the CPU where STRIDE_COMPILE asks for it."""
    wanted = os.environ.get("STRIDE_COMPILE") or "auto"
    if wanted not in ("auto", "0", "1"):
        raise RecipeError(f"STRIDE_COMPILE is {wanted!r}; set it to auto, 0 or 1.")
    if wanted == "auto":
        # On the CPU it was slower for the MNIST and Fashion networks, and compiling takes long
        return device == "cuda" and shutil.which("gcc") is not None
    return wanted == "1"


def _remembered(kept: Path) -> Plan | None:
    try:
        return Plan.from_json(json.loads(kept.read_text()))
    except (OSError, ValueError, KeyError, TypeError):  # not measured yet, or half written: it is measured again
        return None


def _remember(kept: Path, plan: Plan) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        staged = kept.with_suffix(f".{os.getpid()}")
        staged.write_text(json.dumps(plan.to_json()))
        staged.replace(kept)
    except OSError as error:
        _LOG.warning("plan %s could not be written (%s); it will be measured again", kept, error)
