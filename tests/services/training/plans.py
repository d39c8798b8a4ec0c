"""For fits on the CPU: a plan in which nothing is left to measure, and all that can be done to images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from services.training.device import Plan

_PLAIN = Plan(
    device="cpu",
    device_name="cpu",
    device_reason="test",
    precision="fp32",
    channels_last=True,
    precision_reason="test",
    threads=1,
)
EVERY_AUGMENTATION: Final[dict[str, Any]] = {
    "flip_horizontal": True,
    "crop_padding": 1,
    "rotation": 20,
    "shift": 0.1,
    "zoom": 0.1,
    "cutout": 2,
    "brightness": 0.2,
    "contrast": 0.2,
    "mixup": 0.2,
    "cutmix": 1.0,
}


def cpu_plan(**other: Any) -> Plan:
    """One thread, fp32 and channels last, but for what is given."""
    return replace(_PLAIN, **other)
