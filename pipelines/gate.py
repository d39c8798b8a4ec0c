"""The gate: whether a candidate may take the champion's place. A pure function of facts and thresholds.

A candidate is compared with the champion on the same test images only. Where the champion was measured on others, the
caller measures it again on the candidate's (`Facts.test_fingerprint` then is the candidate's). Where that cannot be
done the gate refuses: two accuracies on different images say nothing about which model is better.

Whatever the thresholds, a candidate must beat the majority-class baseline, the accuracy of always naming the most
common class: a network that learned nothing usually comes to exactly that.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from contracts.bundle import MODEL, Manifest
from contracts.recipe import Gate

_LAST_BIT = 1e-12  # less than one image of any test split, more than floating point loses


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the gate needs to know of a model."""

    who: str
    """How reasons call it: `run 1a2b3c`, `version 3`."""
    accuracy: float
    """Of the test split, as served (0-1)."""
    majority_baseline: float | None
    """The share of the most common class in the test split (0-1); None where it is not known."""
    test_fingerprint: str
    """Of the images that the accuracy was measured on."""
    labels: tuple[str, ...]
    model_bytes: int
    tolerance: float
    largest_difference: float | None
    """Between torch and onnxruntime; None where no proof was made."""
    argmax_differences: int

    @classmethod
    def of(cls, manifest: Manifest, *, who: str) -> Facts:
        difference = manifest.parity.get("largest_difference")
        return cls(
            who=who,
            # A manifest without an accuracy is judged as the worst model there is.
            accuracy=manifest.metrics.get("test/accuracy", 0.0),
            majority_baseline=manifest.metrics.get("test/majority_baseline"),
            test_fingerprint=manifest.provenance.test_fingerprint,
            labels=manifest.labels,
            model_bytes=manifest.files[MODEL].bytes,
            tolerance=manifest.tolerance,
            largest_difference=difference,
            argmax_differences=int(manifest.parity.get("argmax_differences", 0)),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    name: str
    passed: bool
    reason: str
    """One clause with the numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    accepted: bool
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every check with its outcome; the failed ones first."""
        ordered = sorted(self.checks, key=lambda check: check.passed)
        return tuple(f"{'passed' if check.passed else 'failed'} {check.name}: {check.reason}" for check in ordered)

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def to_json(self) -> dict[str, Any]:
        return {"accepted": self.accepted, "checks": [asdict(check) for check in self.checks]}

    def to_markdown(self) -> str:
        rows = [
            f"| {check.name} | {'passed' if check.passed else '**failed**'} | {check.reason} |" for check in self.checks
        ]
        title = "accepted" if self.accepted else "refused"
        return "\n".join([f"## Gate: {title}", "", "| check | outcome | reason |", "|---|---|---|", *rows, ""])


def decide(
    candidate: Facts,
    champion: Facts | None,
    thresholds: Gate,
    *,
    allow_new_labels: bool = False,
) -> Verdict:
    """Judge a candidate against the champion (None: there is none) by the recipe's thresholds.

    `allow_new_labels` lets a changed set or order of labels through; no accuracy is compared then, because none can be.
    """
    checks = [
        _floor(candidate, thresholds),
        _baseline(candidate),
        _parity(candidate),
        _size(candidate, thresholds),
    ]
    if champion is not None:
        same = candidate.labels == champion.labels
        checks.append(_labels(candidate, champion, allowed=allow_new_labels))
        if same:
            checks.append(_champion(candidate, champion, thresholds))
    return Verdict(accepted=all(check.passed for check in checks), checks=tuple(checks))


def _floor(candidate: Facts, thresholds: Gate) -> Check:
    passed = candidate.accuracy >= thresholds.min_accuracy
    reason = f"test accuracy {candidate.accuracy:.4f}, at least {thresholds.min_accuracy:.4f} wanted"
    return Check(name="floor", passed=passed, reason=reason)


def _baseline(candidate: Facts) -> Check:
    baseline = candidate.majority_baseline
    if baseline is None:
        reason = "the bundle does not say how large the most common class of the test images is; train again"
        return Check(name="baseline", passed=False, reason=reason)
    # Both are k/n in floating point: equal counts must be equal here, and equality is what learning nothing gives.
    passed = candidate.accuracy > baseline + _LAST_BIT
    tail = "" if passed else ", so it is no better than always naming that class"
    reason = (
        f"test accuracy {candidate.accuracy:.4f} is {'' if passed else 'not '}above {baseline:.4f}, the share of the "
        f"most common class in the test images{tail}"
    )
    return Check(name="baseline", passed=passed, reason=reason)


def _parity(candidate: Facts) -> Check:
    if candidate.largest_difference is None:
        return Check(name="parity", passed=False, reason="no comparison of torch and onnxruntime in the bundle")
    passed = candidate.largest_difference <= candidate.tolerance and candidate.argmax_differences == 0
    reason = (
        f"torch and onnxruntime differ by {candidate.largest_difference:.2g} at most (tolerance "
        f"{candidate.tolerance:.2g}) and name another class for {candidate.argmax_differences} images"
    )
    return Check(name="parity", passed=passed, reason=reason)


def _size(candidate: Facts, thresholds: Gate) -> Check:
    passed = candidate.model_bytes <= thresholds.max_bytes
    reason = f"model.onnx has {candidate.model_bytes:,} bytes, at most {thresholds.max_bytes:,} wanted"
    return Check(name="size", passed=passed, reason=reason)


def _labels(candidate: Facts, champion: Facts, *, allowed: bool) -> Check:
    if candidate.labels == champion.labels:
        return Check(name="labels", passed=True, reason=f"the same {len(candidate.labels)} as {champion.who}")
    what = "in another order than" if set(candidate.labels) == set(champion.labels) else "other than"
    tail = "allowed by request, accuracies not compared" if allowed else "allow new labels to accept it"
    reason = f"{_few(candidate.labels)} are {what} those of {champion.who}, {_few(champion.labels)}; {tail}"
    return Check(name="labels", passed=allowed, reason=reason)


def _champion(candidate: Facts, champion: Facts, thresholds: Gate) -> Check:
    if candidate.test_fingerprint != champion.test_fingerprint:
        reason = f"{champion.who} was measured on other test images and could not be measured on these"
        return Check(name="champion", passed=False, reason=reason)
    lowest = champion.accuracy - thresholds.max_drop
    # Accuracies are k/n in floating point: a drop of exactly max_drop must not fail by the last bit.
    passed = candidate.accuracy >= lowest - _LAST_BIT
    reason = (
        f"test accuracy {candidate.accuracy:.4f} against {champion.accuracy:.4f} of {champion.who} on the same images, "
        f"a drop of up to {thresholds.max_drop:.4f} is allowed"
    )
    return Check(name="champion", passed=passed, reason=reason)


def _few(labels: tuple[str, ...]) -> str:
    shown = ", ".join(labels[:4])
    return f"labels [{shown}{', …' if len(labels) > 4 else ''}]"
