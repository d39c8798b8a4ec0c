"""What this machine's processor can do that a graph may rely on."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
_DOT_PRODUCTS: Final = frozenset({"avx512_vnni", "avx_vnni"})


def lacks_int8(cpuinfo: Path = CPUINFO) -> str | None:
    """Why products of 8-bit integers are slow and may saturate here; None where they are fast and exact.

    x86 without VNNI adds pairs of products in 16 bits, which overflow. Arm adds them in 32.
    """
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        return None
    text = _read(cpuinfo)
    if text is None:
        return f"{cpuinfo} does not say what this {machine} processor can do"
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    flags = set(found.group(1).split()) if found else set()
    return None if flags & _DOT_PRODUCTS else f"this {machine} processor has no VNNI instructions"


def name(cpuinfo: Path = CPUINFO) -> str:
    """What the processor calls itself."""
    found = re.search(r"^model name\s*:\s*(.+)$", _read(cpuinfo) or "", re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _read(cpuinfo: Path) -> str | None:
    try:
        return cpuinfo.read_text()
    except OSError:
        return None
