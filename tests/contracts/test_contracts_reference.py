"""contracts.bundle.Reference: counts that fit each other, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from contracts.bundle import Reference


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"edges": (0.5, 0.5), "confidence": (1, 1, 4)}, "the edges do not rise"),
        ({"edges": (0.9, 0.5), "confidence": (1, 1, 4)}, "the edges do not rise"),
        ({"confidence": (6,)}, "1 edges make 2 bins"),
        ({"confidence": (3, 4)}, "the same images"),
        ({"classes": (0, 0), "confidence": (0, 0)}, "at least one"),
        ({"classes": (-1, 7)}, "greater than or equal to 0"),
        ({"edges": (float("nan"),)}, "finite"),
    ],
)
def test_counts_that_do_not_fit_are_refused(wrong: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"classes": (2, 4), "edges": (0.5,), "confidence": (3, 3)}
    Reference(**good)
    with pytest.raises(ValidationError, match=said):
        Reference(**{**good, **wrong})
