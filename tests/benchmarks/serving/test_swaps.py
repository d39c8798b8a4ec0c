"""What the answers say of the swaps among them."""

from __future__ import annotations

import re

import pytest

from benchmarks.serving import swaps
from benchmarks.serving.measured import LOST, Answer

NUMBERS = {"7": 1, "8": 2, "9": 3}


def answer(at: float, version: str = "7", label: str = "Bag v1", *, took: float = 0.001, status: int = 200) -> Answer:
    body = b'{"model": {"name": "n", "version": "%b"}, "predictions": [{"label": "%b", "index": 8}]}'
    found = re.search(swaps.TAG, body % (version.encode(), label.encode()))
    assert found is not None
    return Answer(at - took, at, status, found[1] if status == 200 else None, 0, None)


def test_each_change_of_the_version_is_a_swap() -> None:
    served = [("7", "Bag v1"), ("8", "Coat v2"), ("9", "Bag v3")]
    answers = [answer(number, *served[number // 10 % 3]) for number in range(100)]
    found = swaps.judge(answers, NUMBERS, work_s=0.5)
    assert found["swaps"] == 9
    assert (found["failed"], found["mixed"], found["answers"]) == (0, 0, 100)


def test_latency_during_a_swap_is_told_apart_from_the_rest() -> None:
    """1,000 answers a second, one swap at 5 s that works for 0.4 s: its answers take 30 ms, the others 1."""
    answers = []
    for number in range(10_000):
        at = number / 1000
        slow = 4.6 < at <= 5
        new = at >= 5
        answers.append(answer(at, "8" if new else "7", "Bag v2" if new else "Bag v1", took=0.03 if slow else 0.001))
    found = swaps.judge(answers, NUMBERS, work_s=0.4)
    assert found["swaps"] == 1
    assert 700 <= found["during"]["answers"] <= 730  # 1.5 x 0.4 s before, 0.1 s behind
    assert found["during"]["p99"] == pytest.approx(30)
    assert found["outside"]["max"] == pytest.approx(1)
    assert found["p99_ratio"] == pytest.approx(30)


def test_an_answer_of_one_version_with_another_ones_label_is_mixed() -> None:
    answers = [answer(1), answer(2, "8", "Bag v1"), answer(3, "8", "Bag v2"), answer(4, "6", "Bag v2")]
    assert swaps.judge(answers, NUMBERS, work_s=0.1)["mixed"] == 2


@pytest.mark.parametrize("status", [LOST, 429, 500, 503])
def test_whatever_is_no_answer_has_failed(status: int) -> None:
    found = swaps.judge([answer(1), answer(2, status=status), answer(3)], NUMBERS, work_s=0.1)
    assert found["failed"] == 1
    assert found["swaps"] == 0


def test_what_the_old_version_answers_while_it_drains_is_no_swap_back() -> None:
    answers = [answer(1), answer(2), answer(3, "8", "Bag v2"), answer(3.1), answer(3.2, "8", "Bag v2"), answer(3.3)]
    assert swaps.judge(answers, NUMBERS, work_s=0.1)["swaps"] == 1
