from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from contracts.errors import DeviceError, RecipeError
from services.training.device import Plan, choose_device, choose_plan


def trial_of(milliseconds: dict[str, float]) -> Callable[[Plan], Callable[[], None]]:
    """Steps that take as long as is said for each precision and layout."""

    def prepare(plan: Plan) -> Callable[[], None]:
        wait = milliseconds[plan.precision + ("+cl" if plan.channels_last else "")] / 1000
        return lambda: time.sleep(wait)

    return prepare


def never(_: Plan) -> Callable[[], None]:
    pytest.fail("the answer was to be remembered, not measured")


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_DEVICE", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # also on a machine that has a GPU
    with pytest.raises(DeviceError, match=r"STRIDE_DEVICE is 'cuda', but .*set it to cpu"):
        choose_device()


def test_an_unknown_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_DEVICE", "gpu")
    with pytest.raises(DeviceError, match="STRIDE_DEVICE is 'gpu'; set it to auto, cpu or cuda"):
        choose_device()


def test_the_cpu_is_taken_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")
    kind, name, reason = choose_device()
    assert (kind, reason) == ("cpu", "STRIDE_DEVICE=cpu")
    assert "threads" in name


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_DEVICE", "cpu")


@pytest.mark.usefixtures("on_cpu")
def test_the_fastest_is_taken_and_the_reason_holds_the_measurements(tmp_path: Path) -> None:
    trial = trial_of({"fp32": 6, "fp32+cl": 5, "bf16+cl": 2})
    plan = choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.02)
    assert (plan.precision, plan.channels_last, plan.dtype) == ("bf16", True, torch.bfloat16)
    assert "fp32 channels_last" in plan.precision_reason


@pytest.mark.usefixtures("on_cpu")
def test_a_lower_precision_must_gain_ten_percent(tmp_path: Path) -> None:
    trial = trial_of({"fp32": 9, "fp32+cl": 6, "bf16+cl": 5.9})
    plan = choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.02)
    assert (plan.precision, plan.channels_last) == ("fp32", True)


@pytest.mark.usefixtures("on_cpu")
def test_the_answer_is_remembered_for_the_same_key_only(tmp_path: Path) -> None:
    trial = trial_of({"fp32": 3, "fp32+cl": 2, "bf16+cl": 1})
    first = choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.01)
    assert choose_plan("auto", trial=never, key="k", cache=tmp_path) == first
    other = trial_of({"fp32": 1, "fp32+cl": 2, "bf16+cl": 3})
    assert choose_plan("auto", trial=other, key="l", cache=tmp_path, seconds=0.01).precision == "fp32"


@pytest.mark.usefixtures("on_cpu")
def test_one_thread_is_taken_where_it_is_faster_and_the_process_keeps_its_own(tmp_path: Path) -> None:
    def trial(_: Plan) -> Callable[[], None]:
        return lambda: time.sleep(0.001 * torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        plan = choose_plan("fp32", trial=trial, key="k", cache=tmp_path, seconds=0.01)
        assert plan.threads == 1
        assert "fp32 channels_last 2 threads" in plan.precision_reason
        assert torch.get_num_threads() == 2
        with plan.using_threads():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        assert choose_plan("fp32", trial=never, key="k", cache=tmp_path) == plan
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("on_cpu")
def test_a_broken_memory_is_measured_again(tmp_path: Path) -> None:
    trial = trial_of({"fp32": 3, "fp32+cl": 2, "bf16+cl": 1})
    choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.01)
    (kept,) = (tmp_path / "plans").iterdir()
    kept.write_text("{")
    assert choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.01).precision == "bf16"
    assert json.loads(kept.read_text())["precision"] == "bf16"


@pytest.mark.usefixtures("on_cpu")
def test_a_precision_that_is_asked_for_is_not_measured(tmp_path: Path) -> None:
    assert choose_plan("bf16", trial=never, key="k", cache=tmp_path).precision_reason == "the recipe says so"


@pytest.mark.usefixtures("on_cpu")
def test_fp16_is_refused_on_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"fit\.precision is 'fp16', which needs a CUDA device"):
        choose_plan("fp16", trial=never, key="k", cache=tmp_path)


@pytest.mark.gpu
def test_auto_measures_on_cuda(tmp_path: Path) -> None:
    weight = torch.randn(512, 512, device="cuda")

    def prepare(plan: Plan) -> Callable[[], None]:
        def step() -> None:
            with plan.autocast():
                weight @ weight

        return step

    plan = choose_plan("auto", trial=prepare, key="k", cache=tmp_path)
    assert plan.device == "cuda"
    assert "steps/s" in plan.precision_reason
