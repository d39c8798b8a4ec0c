from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from contracts.recipe import Gate
from pipelines.gate import Facts, decide

fractions = st.floats(0, 1)
drops = st.floats(0, 0.99)
CANDIDATE = Facts(
    who="run a",
    accuracy=0.95,
    majority_baseline=0.5,
    test_fingerprint="same",
    labels=("cat", "dog"),
    model_bytes=1000,
    tolerance=1e-4,
    largest_difference=1e-6,
    argmax_differences=0,
)
CHAMPION = replace(CANDIDATE, who="version 3", accuracy=0.94)


def _failed(*arguments: Facts | None, gate: Gate | None = None, allow_new_labels: bool = False) -> list[str]:
    candidate, champion = arguments
    assert candidate is not None
    verdict = decide(candidate, champion, gate or Gate(), allow_new_labels=allow_new_labels)
    assert verdict.accepted == (not verdict.failed)
    return [check.name for check in verdict.failed]


def test_a_first_candidate_needs_no_champion() -> None:
    assert _failed(CANDIDATE, None) == []


@given(fractions, fractions)
def test_below_the_floor_is_refused_and_at_the_floor_is_not(accuracy: float, floor: float) -> None:
    failed = _failed(replace(CANDIDATE, accuracy=accuracy), None, gate=Gate(min_accuracy=floor))

    assert ("floor" in failed) == (accuracy < floor)


@given(st.integers(1, 10_000), st.data())
def test_as_many_right_as_the_most_common_class_has_is_not_enough_and_one_more_is(
    images: int, data: st.DataObject
) -> None:
    right, common = (data.draw(st.integers(low, images)) for low in (0, 1))
    learned = replace(CANDIDATE, accuracy=right / images, majority_baseline=common / images)

    assert _failed(learned, None) == ([] if right > common else ["baseline"])


def test_neither_thresholds_nor_new_labels_let_a_model_through_that_learned_nothing() -> None:
    coin = replace(CANDIDATE, accuracy=0.5)
    gate = Gate(min_accuracy=0, max_drop=0.99)

    assert _failed(coin, None, gate=gate) == ["baseline"]
    assert _failed(coin, CHAMPION, gate=gate) == ["baseline"]
    assert _failed(coin, replace(CHAMPION, labels=("cat", "cow")), gate=gate, allow_new_labels=True) == ["baseline"]
    (check,) = decide(coin, None, gate).failed
    assert check.reason == (
        "test accuracy 0.5000 is not above 0.5000, the share of the most common class in the test images, so it is no "
        "better than always naming that class"
    )


def test_a_bundle_that_does_not_know_its_baseline_is_refused() -> None:
    assert _failed(replace(CANDIDATE, majority_baseline=None), None) == ["baseline"]


@given(fractions, fractions, drops)
def test_a_drop_is_refused_exactly_beyond_what_is_allowed(candidate: float, champion: float, drop: float) -> None:
    assume(abs(candidate - (champion - drop)) > 1e-9)
    failed = _failed(
        replace(CANDIDATE, accuracy=candidate), replace(CHAMPION, accuracy=champion), gate=Gate(max_drop=drop)
    )

    assert ("champion" in failed) == (candidate < champion - drop)


@given(st.integers(1, 10_000), st.data())
def test_a_drop_of_exactly_what_is_allowed_passes(images: int, data: st.DataObject) -> None:
    champion = data.draw(st.integers(1, images))
    lost = data.draw(st.integers(0, champion))
    assume(lost < images)
    failed = _failed(
        replace(CANDIDATE, accuracy=(champion - lost) / images),
        replace(CHAMPION, accuracy=champion / images),
        gate=Gate(max_drop=lost / images),
    )

    assert "champion" not in failed


@given(fractions, fractions, drops, fractions)
def test_a_better_candidate_is_never_refused_where_a_worse_one_passes(
    low: float, champion: float, drop: float, gain: float
) -> None:
    gate = Gate(max_drop=drop, min_accuracy=champion / 2)
    rival = replace(CHAMPION, accuracy=champion)
    better = replace(CANDIDATE, accuracy=min(1.0, low + gain))

    if not _failed(replace(CANDIDATE, accuracy=low), rival, gate=gate):
        assert not _failed(better, rival, gate=gate)


@given(fractions)
def test_accuracies_on_other_test_images_are_never_compared(champion: float) -> None:
    other = replace(CHAMPION, accuracy=champion, test_fingerprint="other")

    assert _failed(CANDIDATE, other) == ["champion"]


def test_other_labels_are_refused_unless_they_are_allowed() -> None:
    other = replace(CHAMPION, labels=("cat", "cow"))

    assert _failed(CANDIDATE, other) == ["labels"]
    assert _failed(CANDIDATE, other, allow_new_labels=True) == []


def test_the_same_labels_in_another_order_are_other_labels() -> None:
    verdict = decide(CANDIDATE, replace(CHAMPION, labels=("dog", "cat")), Gate())

    assert not verdict.accepted
    assert "in another order" in verdict.reasons[0]


def test_a_bundle_without_proof_is_refused() -> None:
    assert _failed(replace(CANDIDATE, largest_difference=None), None) == ["parity"]


@given(st.floats(0, 1), st.floats(1e-9, 1), st.integers(0, 3))
def test_parity_must_hold(difference: float, tolerance: float, differing: int) -> None:
    facts = replace(CANDIDATE, largest_difference=difference, tolerance=tolerance, argmax_differences=differing)

    assert ("parity" in _failed(facts, None)) == (difference > tolerance or differing > 0)


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_model_must_not_be_larger_than_allowed(size: int, most: int) -> None:
    failed = _failed(replace(CANDIDATE, model_bytes=size), None, gate=Gate(max_bytes=most))

    assert ("size" in failed) == (size > most)


def test_every_check_is_named_with_its_numbers_and_the_failed_ones_come_first() -> None:
    verdict = decide(replace(CANDIDATE, accuracy=0.9), CHAMPION, Gate(min_accuracy=0.5))

    assert verdict.reasons[0].startswith("failed champion: test accuracy 0.9000 against 0.9400 of version 3")
    assert [reason.split()[1] for reason in verdict.reasons[1:]] == [
        "floor:",
        "baseline:",
        "parity:",
        "size:",
        "labels:",
    ]
    assert all(reason.startswith("passed") for reason in verdict.reasons[1:])
    assert "| champion | **failed** |" in verdict.to_markdown()
    assert verdict.to_json()["accepted"] is False
