from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from contracts.errors import RecipeError
from services.training.device import Plan
from services.training.measurement import Trial
from services.training.speed import choose_plan
from tests.services.training.clock import Clock

Step = Callable[[], Tensor | float]


time = Clock()


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if not request.node.get_closest_marker("gpu"):
        monkeypatch.setenv("STRIDE_DEVICE", "cpu")
        monkeypatch.setattr("services.training.measurement.time", time)


def kind(plan: Plan) -> str:
    return plan.precision + ("+cl" if plan.channels_last else "") + ("+compiled" if plan.compiled else "")


def trial_of(milliseconds: dict[str, float], losses: dict[str, float] | None = None) -> Trial:
    """Steps that take as long, and come to the loss, that is said for each precision and layout."""

    def prepare(plan: Plan) -> Step:
        wait = milliseconds[kind(plan)] / 1000
        loss = (losses or {}).get(kind(plan), 1.0)

        def step() -> float:
            time.sleep(wait)
            return loss

        return step

    return prepare


def never(_: Plan) -> Step:
    pytest.fail("the answer was to be remembered, not measured")


def test_the_fastest_is_taken_and_the_table_holds_all_candidates(tmp_path: Path) -> None:
    trial = trial_of({"fp32": 6, "fp32+cl": 5, "bf16+cl": 2})
    plan = choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.1)
    assert (plan.precision, plan.channels_last, plan.dtype) == ("bf16", True, torch.bfloat16)
    verdicts = {candidate.name.partition(",")[0]: candidate.verdict for candidate in plan.candidates}
    assert verdicts == {"fp32": "slower", "fp32 channels_last": "slower", "bf16 channels_last": "taken"}
    taken = next(candidate for candidate in plan.candidates if candidate.verdict == "taken")
    assert taken.milliseconds == pytest.approx(2)


def test_the_plain_loop_is_taken_where_nothing_is_faster(tmp_path: Path) -> None:
    trial = trial_of({"fp32": 2, "fp32+cl": 4, "bf16+cl": 5})
    plan = choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.1)
    assert (plan.precision, plan.channels_last) == ("fp32", False)


def test_a_lower_precision_must_gain_ten_percent(tmp_path: Path) -> None:
    trial = trial_of({"fp32": 9, "fp32+cl": 6, "bf16+cl": 5.8})
    plan = choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.2)
    assert (plan.precision, plan.channels_last) == ("fp32", True)
    assert plan.candidates[2].verdict == "gains less than 10%"


@pytest.mark.parametrize("loss", [1.5, 0.2, float("nan"), float("inf")])
def test_what_comes_to_another_loss_is_not_taken_however_fast(loss: float, tmp_path: Path) -> None:
    trial = trial_of({"fp32": 6, "fp32+cl": 5, "bf16+cl": 1}, {"bf16+cl": loss})
    plan = choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.1)
    assert (plan.precision, plan.channels_last) == ("fp32", True)
    assert plan.candidates[2].verdict == "its loss is another than the plain loop's"


def test_the_answer_is_remembered_with_its_table_for_the_same_key_only(tmp_path: Path) -> None:
    trial = trial_of({"fp32": 3, "fp32+cl": 2, "bf16+cl": 1})
    first = choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.05)
    assert choose_plan("auto", trial=never, key="k", cache=tmp_path) == first
    other = trial_of({"fp32": 1, "fp32+cl": 2, "bf16+cl": 3})
    assert choose_plan("auto", trial=other, key="l", cache=tmp_path, seconds=0.05).precision == "fp32"


@pytest.mark.parametrize("content", ["{", "{}", '{"precision": "bf16"}', "[]"])
def test_a_broken_memory_is_measured_again(content: str, tmp_path: Path) -> None:
    trial = trial_of({"fp32": 3, "fp32+cl": 2, "bf16+cl": 1})
    first = choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.05)
    (kept,) = (tmp_path / "plans").iterdir()
    kept.write_text(content)
    assert choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.05).precision == first.precision
    assert choose_plan("auto", trial=never, key="k", cache=tmp_path).precision == first.precision


def test_one_thread_is_taken_where_it_is_faster(tmp_path: Path) -> None:
    def trial(_: Plan) -> Step:
        def step() -> float:
            time.sleep(0.002 * torch.get_num_threads())
            return 1.0

        return step

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        plan = choose_plan("fp32", trial=trial, key="k", cache=tmp_path, seconds=0.05)
        assert [candidate.name for candidate in plan.candidates] == [
            "fp32 channels_last, 2 threads",
            "fp32 channels_last, 1 thread",
        ]
        assert (plan.threads, torch.get_num_threads()) == (1, 2)
        assert choose_plan("fp32", trial=never, key="k", cache=tmp_path) == plan
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("alone", "taken"),
    [
        ({"bf16+cl": 1.0, "fp32+cl": 3.0}, "bf16 channels_last, 1 thread"),
        ({"bf16+cl": 9.0, "fp32+cl": 1.0}, "fp32 channels_last, 1 thread"),
        ({"bf16+cl": 9.0, "fp32+cl": 9.0}, "bf16 channels_last, 2 threads"),
    ],
)
def test_only_the_fastest_and_the_fastest_in_fp32_are_tried_on_one_thread(
    alone: dict[str, float], taken: str, tmp_path: Path
) -> None:
    together = {"fp32": 6.0, "fp32+cl": 4.0, "bf16+cl": 2.0}

    def trial(plan: Plan) -> Step:
        return trial_of(together if plan.threads == 2 else alone)(plan)

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        plan = choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.2)
    finally:
        torch.set_num_threads(before)
    assert [candidate.name for candidate in plan.candidates] == [
        "fp32, 2 threads",
        "fp32 channels_last, 2 threads",
        "bf16 channels_last, 2 threads",
        "bf16 channels_last, 1 thread",
        "fp32 channels_last, 1 thread",
    ]
    assert plan.name == taken
    assert [candidate.name for candidate in plan.candidates if candidate.verdict == "taken"] == [taken]


@pytest.mark.parametrize(("steps", "compiled"), [(10, False), (1_000_000, True)])
def test_compiling_is_taken_where_the_steps_to_come_pay_for_it(
    steps: int, compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIDE_COMPILE", "1")
    tried: list[str] = []

    def trial(plan: Plan) -> Step:
        tried.append(kind(plan))
        return trial_of({"fp32": 4, "fp32+cl": 4, "bf16+cl": 2, "bf16+cl+compiled": 1})(plan)

    plan = choose_plan("auto", trial=trial, key="k", cache=tmp_path, steps=steps, seconds=0.05)
    assert plan.compiled is compiled
    assert ("bf16+cl+compiled" in tried) is compiled  # with few steps to come it is not even tried


def test_a_precision_that_is_asked_for_is_not_measured_on_one_thread(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plan = choose_plan("bf16", trial=never, key="k", cache=tmp_path)
    finally:
        torch.set_num_threads(before)
    assert plan.precision_reason == "the recipe says so"


def test_fp16_is_refused_on_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"fit\.precision is 'fp16', which needs a CUDA device"):
        choose_plan("fp16", trial=never, key="k", cache=tmp_path)


def test_an_unknown_setting_of_the_compiler_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_COMPILE", "yes")
    with pytest.raises(RecipeError, match="STRIDE_COMPILE is 'yes'; set it to auto, 0 or 1"):
        choose_plan("auto", trial=never, key="k", cache=tmp_path)


def test_a_plan_that_cannot_be_kept_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "plans").write_text("in the way")
    trial = trial_of({"fp32": 3, "fp32+cl": 2, "bf16+cl": 1})
    assert choose_plan("auto", trial=trial, key="k", cache=tmp_path, seconds=0.02).precision == "bf16"
    assert "could not be written" in caplog.text


@pytest.mark.gpu
def test_auto_measures_precisions_and_a_cuda_graph_on_cuda(tmp_path: Path) -> None:
    weight = torch.randn(512, 512, device="cuda")

    def prepare(plan: Plan) -> Step:
        def step() -> Tensor:
            with plan.autocast():
                return (weight @ weight).float().mean()

        return step

    plan = choose_plan("auto", trial=prepare, key="k", cache=tmp_path)
    names = [candidate.name for candidate in plan.candidates]
    assert plan.device == "cuda"
    assert names[:4] == ["fp32", "fp32 channels_last", "tf32 channels_last", "bf16 channels_last"]
    assert "cuda_graph" in names[4]
