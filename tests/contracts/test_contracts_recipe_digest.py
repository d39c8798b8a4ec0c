"""What identifies a fit."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import recipe
from tests.contracts.recipes import good_content, with_key


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    def reversed_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return value

    digest = recipe.parse(good_content(), name="mine").digest()
    assert recipe.parse(reversed_keys(good_content()), name="mine").digest() == digest


def test_the_digest_does_not_depend_on_whether_a_default_is_written_out() -> None:
    plain = recipe.parse(good_content(), name="mine")
    assert recipe.parse(plain.model_dump(mode="json"), name="mine").digest() == plain.digest()
    assert recipe.parse(with_key("optimizer.lr", 0.001), name="mine").digest() == plain.digest()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "other"),
        ("model_name", "other"),
        ("description", "Another text."),
        ("gate.min_accuracy", 0.9),
        ("published.test_accuracy", 0.9),
    ],
)
def test_the_digest_ignores_what_does_not_change_the_fit(path: str, value: object) -> None:
    digest = recipe.parse(good_content(), name="mine").digest()
    assert recipe.parse(with_key(path, value), name="mine").digest() == digest


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.image.height", 29),
        ("data.split_seed", 1),
        ("data.classes", ["1", "2"]),
        ("model.blocks.0.filters", 9),
        ("augmentation.flip_horizontal", True),
        ("optimizer.lr", 0.1),
        ("schedule.name", "cosine"),
        ("fit.seed", 1),
        ("export.tolerance", 1e-3),
    ],
)
def test_the_digest_changes_with_what_changes_the_fit_or_the_export(path: str, value: object) -> None:
    digest = recipe.parse(good_content(), name="mine").digest()
    assert recipe.parse(with_key(path, value), name="mine").digest() != digest


def test_the_order_of_classes_counts_because_it_is_the_order_of_the_output() -> None:
    digests = {recipe.parse(with_key("data.classes", order), name="m").digest() for order in (["1", "2"], ["2", "1"])}
    assert len(digests) == 2
