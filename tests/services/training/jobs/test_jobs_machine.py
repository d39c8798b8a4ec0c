"""services.training.jobs.machine: the cores and GPUs that jobs share."""

from __future__ import annotations

import os

import pytest

from contracts.errors import RecipeError
from services.training.jobs import machine


def test_the_cores_are_those_that_this_process_may_use() -> None:
    assert machine.cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("named", "count"), [(None, 4), ("", 0), ("-1", 0), ("1,3", 2), ("GPU-1", 1), ("0,1,2,3,4,5", 4)]
)
def test_the_gpus_are_those_that_are_visible(named: str | None, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_installed", lambda: 4)
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert machine.gpus() == count


def test_a_service_for_the_cpu_has_no_gpus_and_one_for_cuda_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_installed", lambda: 4)
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")
    assert machine.gpus() == 0
    monkeypatch.setattr(machine, "_installed", lambda: 0)
    monkeypatch.setenv("STRIDE_DEVICE", "cuda")
    with pytest.raises(RecipeError, match="STRIDE_DEVICE is 'cuda' and no GPU is found"):
        machine.gpus()


def test_a_machine_without_a_driver_has_none() -> None:
    if os.path.exists("/proc/driver/nvidia"):  # noqa: PTH110
        pytest.skip("this machine has the driver")
    assert machine._installed() == 0
