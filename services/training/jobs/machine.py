"""What this machine has to share among jobs, found without torch."""

from __future__ import annotations

import os

from contracts.errors import RecipeError


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> int:
    """The GPUs that jobs may use: those that CUDA_VISIBLE_DEVICES names, else all; none where STRIDE_DEVICE is cpu.

    Raises:
        RecipeError: STRIDE_DEVICE is cuda, and there is none.
    """
    device = os.environ.get("STRIDE_DEVICE") or "auto"
    found = 0 if device == "cpu" else _visible(_installed())
    if device == "cuda" and not found:
        raise RecipeError("STRIDE_DEVICE is 'cuda' and no GPU is found; give the service one, or set it to auto.")
    return found


def _visible(installed: int) -> int:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or not installed:
        return installed
    return min(installed, len([name for name in named.split(",") if name.strip() and name.strip() != "-1"]))


def _installed() -> int:
    import pynvml  # type: ignore[import-untyped]

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver
        return 0
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()
