"""Which of onnxruntime's execution providers runs the models, and why.

onnxruntime falls back to the CPU without a word, so the choice is made here, before any session, and enforced by the
engine: a session asked for CUDA either runs on it or is not made.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from contracts.errors import DeviceError

CUDA: Final = "CUDAExecutionProvider"
CPU: Final = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class Provider:
    name: Literal["CUDAExecutionProvider", "CPUExecutionProvider"]
    reason: str
    """Why this one, in words; shown in /v1/models and in the log."""


def choose(device: Literal["auto", "cpu", "cuda"], *, require_gpu: bool) -> Provider:
    """The provider for `device`.

    Raises:
        DeviceError: CUDA was asked for (STRIDE_DEVICE=cuda or STRIDE_REQUIRE_GPU=1) and cannot be had.
    """
    if device == "cpu":
        return Provider(CPU, "STRIDE_DEVICE is cpu")
    missing = _why_no_cuda()
    if missing is None:
        return Provider(CUDA, "a GPU is there" if device == "auto" else "STRIDE_DEVICE is cuda")
    if require_gpu or device == "cuda":
        asked = "STRIDE_REQUIRE_GPU is 1" if require_gpu else "STRIDE_DEVICE is cuda"
        raise DeviceError(f"{asked}, but there is no usable GPU: {missing}; give the service a GPU or unset it.")
    return Provider(CPU, f"no usable GPU: {missing}")


def threads(workers: int) -> int:
    """Threads for one worker: the cores this process may use (affinity and cgroup quota) over the workers."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup v2, or `max`: no quota
        pass
    return max(1, int(cores / workers))


def _why_no_cuda() -> str | None:
    """Why CUDA cannot be used, None when it can; asks the driver alone, so it is fast and loads no CUDA library."""
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():  # type: ignore[attr-defined]
        return "this onnxruntime was built without CUDA"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver (libcuda.so.1) is not here"
    if (status := driver.cuInit(0)) != 0:
        return f"the NVIDIA driver does not start (cuInit gives {status})"
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value else "the NVIDIA driver sees no GPU"
