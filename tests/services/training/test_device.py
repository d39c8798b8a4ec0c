from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from contracts.errors import DeviceError
from services.training.device import Candidate, Plan, choose_device
from tests.services.training.plans import cpu_plan

PLAN = cpu_plan(
    device_name="a processor",
    precision="bf16",
    precision_reason="measured",
    threads=2,
    candidates=(
        Candidate(name="fp32, 2 threads", milliseconds=10.0, loss=2.0, verdict="slower"),
        Candidate(name="bf16 channels_last, 2 threads", milliseconds=4.0, loss=2.01, verdict="taken"),
    ),
)


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


def test_a_plan_computes_with_its_threads_and_the_process_keeps_its_own() -> None:
    before = torch.get_num_threads()
    with replace(PLAN, threads=before + 1).computing():
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_weights_are_cast_anew_each_time_since_a_step_changes_them() -> None:
    weight, image = torch.nn.Parameter(torch.ones(1, 1)), torch.ones(1, 1)
    with PLAN.autocast():
        before = torch.nn.functional.linear(image, weight).detach()
        with torch.no_grad():
            weight.mul_(3)
        after = torch.nn.functional.linear(image, weight).detach()
    assert before.dtype == torch.bfloat16
    assert (before.item(), after.item()) == (1.0, 3.0)


def test_a_plan_survives_json_with_its_table() -> None:
    assert Plan.from_json(json.loads(json.dumps(PLAN.to_json()))) == PLAN


def test_the_summary_names_the_choice_its_time_and_what_it_gains() -> None:
    assert PLAN.summary == "bf16 channels_last, 2 threads: 4 ms a step, 2.5x fp32, 2 threads (2 measured)"
    given = replace(PLAN, candidates=(), precision_reason="the recipe says so")
    assert given.summary == "bf16 channels_last, 2 threads; the recipe says so"


def test_the_facts_are_short_strings_without_the_table() -> None:
    facts = PLAN.facts()
    assert facts["precision"] == "bf16"
    assert "candidates" not in facts


@pytest.mark.gpu
def test_products_of_fp32_are_rounded_only_where_the_plan_says_so() -> None:
    exact = torch.randn(512, 512, device="cuda", dtype=torch.float64, generator=torch.Generator("cuda").manual_seed(0))
    values = exact.float()

    def error(plan: Plan) -> float:
        with plan.computing():
            return float(((values @ values).double() - exact @ exact).abs().max())

    full = replace(PLAN, device="cuda", precision="fp32")
    assert error(replace(full, tf32=True)) > 10 * error(full)
