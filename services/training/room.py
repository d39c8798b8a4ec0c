"""How much data may stay in memory: what STRIDE_RESIDENT says, or half of what is free."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import torch

from contracts.errors import RecipeError

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_MEMINFO: Final = Path("/proc/meminfo")
_CGROUP: Final = Path("/sys/fs/cgroup")


def resident_limit(device: str | torch.device) -> int:
    """Bytes of images that may be kept in a device's memory; the other half of what is free is for the fit.

    Raises:
        RecipeError: STRIDE_RESIDENT is neither `auto` nor a size.
    """
    given = os.environ.get("STRIDE_RESIDENT") or "auto"
    if given == "auto":
        return free_memory(device) // 2
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", given.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise RecipeError(f"STRIDE_RESIDENT is {given!r}; set it to auto or a size such as 8GB or 512MiB.")
    return int(float(found[1]) * _UNITS[found[2]])


def free_memory(device: str | torch.device) -> int:
    """Bytes of a device's memory that nobody uses; on the CPU within the container's limit."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _text(_MEMINFO), re.MULTILINE)
    available = int(found[1]) * 1024 if found else 2**32  # not Linux: taken to be 4 GiB
    limit, used = _text(_CGROUP / "memory.max").strip(), _text(_CGROUP / "memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        # What the page cache holds of files counts as used, and is given up when it is needed
        cached = re.search(r"^inactive_file (\d+)", _text(_CGROUP / "memory.stat"), re.MULTILINE)
        available = min(available, int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return max(available, 0)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # another system, or no limit
        return ""
