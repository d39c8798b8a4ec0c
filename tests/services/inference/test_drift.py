"""services.inference.drift against scipy, and over a service: a shifted stream raises the metric, another does not."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import rel_entr

from contracts import bundle
from contracts.bundle import Reference
from contracts.images import encode_png
from pipelines.reference import reference
from services.inference.drift import Drift, psi


def answers(seed: int, rows: int, *, classes: int = 10, sharp: float = 3.0) -> NDArray[np.float32]:
    """Random probabilities, (rows, classes); the sharper, the more confident."""
    logits = np.random.default_rng(seed).normal(size=(rows, classes)) * sharp
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), dtype=np.float32)


class Told:
    """What a Drift publishes last."""

    def __init__(self) -> None:
        self.classes: float | None = None
        self.confidence: float | None = None
        self.images = -1

    def __call__(self, classes: float | None, confidence: float | None, images: int) -> None:
        self.classes, self.confidence, self.images = classes, confidence, images


@pytest.mark.parametrize("seed", range(5))
def test_psi_is_the_symmetric_divergence_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    expected, found = rng.integers(0, 500, 10), rng.integers(0, 500, 10)
    e, a = (expected + 0.5) / (expected + 0.5).sum(), (found + 0.5) / (found + 0.5).sum()
    assert psi(expected, found) == pytest.approx(float(np.sum(rel_entr(a, e) + rel_entr(e, a))), rel=1e-12)


def test_psi_by_hand() -> None:
    # Shares 0.5/0.5 against 0.75/0.25, up to the half an image that each cell counts more.
    by_hand = 0.25 * np.log(0.75 / 0.5) + -0.25 * np.log(0.25 / 0.5)
    assert psi(np.array([10**6, 10**6]), np.array([15 * 10**5, 5 * 10**5])) == pytest.approx(by_hand, rel=1e-5)
    assert psi(np.array([3, 4, 5]), np.array([3, 4, 5])) == 0
    assert np.isfinite(psi(np.array([10, 0]), np.array([0, 10])))


def test_equal_answers_tell_of_no_drift_and_others_do() -> None:
    known = reference(answers(0, 10_000))
    told = Told()
    drift = Drift(known, window=2000, publish=told)
    assert (told.classes, told.images) == (None, 0)
    for start in range(0, 2048, 64):
        drift.observe(answers(start + 1, 64))
    assert told.images == 2000
    assert told.classes is not None
    assert told.confidence is not None
    # Twice the mean that chance makes of it, (cells - 1) * (1 / window + 1 / test).
    assert max(told.classes, told.confidence) < 2 * 9 * (1 / 2000 + 1 / 10_000)
    for start in range(0, 2048, 64):
        drift.observe(answers(start, 64, sharp=1.5))
    assert told.confidence > 0.25
    assert told.classes < 0.02  # it is the confidence alone that has drifted
    skewed = answers(7, 20_000)
    skewed = skewed[(skewed.argmax(axis=1) < 3)][:2048]
    for start in range(0, 2048, 64):
        drift.observe(skewed[start : start + 64])
    assert told.classes > 0.25


def test_the_window_slides_over_the_last_images_exactly() -> None:
    known, told = reference(answers(0, 5000)), Told()
    drift = Drift(known, window=700, publish=told)
    stream = answers(3, 128 * 20, sharp=2.0)
    at = 0
    for size in itertools.cycle((1, 7, 64, 128, 900)):
        if at >= len(stream):
            break
        drift.observe(stream[at : at + size])
        at += size
    counted = len(stream) - drift._pending_rows
    window = stream[counted - 700 : counted]
    bins = np.searchsorted(np.asarray(known.edges, dtype=np.float32), window.max(axis=1), side="right")
    by_hand = psi(np.asarray(known.confidence), np.bincount(bins, minlength=len(known.confidence)))
    assert told.images == 700
    assert told.confidence == pytest.approx(by_hand)


def test_a_window_with_few_images_a_cell_tells_nothing() -> None:
    told = Told()
    drift = Drift(reference(answers(0, 5000)), window=10_000, publish=told)
    drift.observe(answers(1, 499))
    assert (told.classes, told.images) == (None, 499)
    drift.observe(answers(2, 128))
    assert told.classes is not None


def test_answers_that_are_no_numbers_are_not_counted() -> None:
    told = Told()
    drift = Drift(reference(answers(0, 5000)), window=1000, publish=told)
    broken = answers(1, 128)
    broken[::2] = np.nan
    drift.observe(broken)
    assert told.images == 64


def drawn(shade: int, count: int) -> list[bytes]:
    """PNGs of the tiny model around one brightness."""
    rng = np.random.default_rng(shade)
    return [encode_png(rng.integers(shade, shade + 80, (8, 8, 1)).astype(np.uint8)) for _ in range(count)]


def decoded(files: list[bytes]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.stack([np.asarray(Image.open(io.BytesIO(data)))[:, :, None] for data in files])


def test_a_shifted_stream_raises_the_metric_and_an_unshifted_one_does_not(
    start_service: Callable[..., Any], tiny: Any, tmp_path: Path
) -> None:
    like, unlike = drawn(20, 640), drawn(170, 640)
    plain = tiny(3).bundle(tmp_path / "plain")
    known = reference(tiny(3).probabilities(decoded(drawn(20, 2000))))
    files = {name: plain.read(name) for name in plain.manifest.files}
    made = bundle.write(tmp_path / "b", plain.manifest.model_copy(update={"reference": known}), files)
    service = start_service(stored={"shapes": made}, STRIDE_DRIFT_WINDOW="512")
    service.wait()

    def told(of: str) -> float:
        text = httpx.get(f"{service.url}/metrics").text
        found = re.search(rf'stride_drift_psi{{model="shapes",of="{of}"}} (\S+)', text)
        return float(found[1]) if found else -1.0

    def send(images: list[bytes]) -> None:
        with httpx.Client(base_url=service.url, timeout=20) as client:
            for start in range(0, len(images), 32):
                parts = [("image", ("a.png", data)) for data in images[start : start + 32]]
                assert client.post("/v1/predict", files=parts).status_code == 200

    assert told("confidence") == -1.0  # nothing is told of a window that is too small
    send(like)
    assert 0 <= told("confidence") < 0.1
    assert 0 <= told("classes") < 0.1
    send(unlike)
    assert told("confidence") > 0.25


def test_a_bundle_without_a_reference_is_served_and_tells_nothing(http: httpx.Client) -> None:
    assert "stride_drift_psi{" not in http.get("/metrics").text


def test_the_reference_is_part_of_the_contract(tiny: Any, tmp_path: Path) -> None:
    made = tiny(1).bundle(tmp_path / "b")
    assert made.manifest.reference is None
    known = Reference(classes=(1, 2, 3), edges=(0.5,), confidence=(4, 2))
    files = {name: made.read(name) for name in made.manifest.files}
    again = bundle.write(tmp_path / "c", made.manifest.model_copy(update={"reference": known}), files)
    assert bundle.read(again.path).manifest.reference == known
