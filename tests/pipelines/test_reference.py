"""pipelines.reference: how the test images were answered, in bins that hold as much each."""

from __future__ import annotations

import numpy as np
import pytest

from contracts.bundle import Reference
from pipelines.reference import reference


def two(confidence: np.ndarray) -> np.ndarray:
    """Answers of a model of two classes with these largest probabilities."""
    return np.stack([confidence, 1 - confidence], axis=1).astype(np.float32)


def test_ten_bins_hold_a_tenth_of_the_images_each() -> None:
    found = reference(two(np.random.default_rng(0).uniform(0.5, 1, 1000)))
    assert len(found.edges) == 9
    assert set(found.confidence) <= {99, 100, 101}
    assert found.classes == (1000, 0)


def test_a_confidence_that_many_images_share_has_a_bin_of_its_own_and_none_is_empty() -> None:
    found = reference(two(np.concatenate([np.linspace(0.5, 0.99, 400), np.ones(600)])))
    assert found.edges[-1] == 1.0
    assert found.confidence[-1] == 600
    assert min(found.confidence) > 0


@pytest.mark.parametrize("rows", [1, 3])
def test_few_or_equal_answers_make_one_bin(rows: int) -> None:
    found = reference(np.full((rows, 4), 0.25, dtype=np.float32))
    assert found == Reference(classes=(rows, 0, 0, 0), edges=(), confidence=(rows,))


def test_the_edges_are_kept_exactly() -> None:
    probabilities = two(np.random.default_rng(1).uniform(0.5, 1, 500).astype(np.float32))
    found = reference(probabilities)
    again = Reference.model_validate_json(found.model_dump_json())
    bins = np.searchsorted(np.asarray(again.edges, dtype=np.float32), probabilities.max(axis=1), side="right")
    assert tuple(np.bincount(bins)) == found.confidence
