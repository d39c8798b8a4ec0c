"""A tiny recipe, data set and answer for tests of tracking and report."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.recipe import Recipe, parse
from services.training.data.dataset import Dataset, Skipped, Split


class MakeRecipe(Protocol):
    def __call__(self, name: str = ..., **parts: Any) -> Recipe: ...


class MakeDataset(Protocol):
    def __call__(self, *, classes: int = ..., skipped: tuple[Skipped, ...] = ..., overlap: int = ...) -> Dataset: ...


@pytest.fixture
def make_recipe() -> MakeRecipe:
    def make(name: str = "tiny", **parts: Any) -> Recipe:
        content: dict[str, Any] = {
            "data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},
            "model": {"kind": "convnet", "blocks": [{"filters": 4}]},
        }
        return parse({**content, **parts}, name=name)

    return make


@pytest.fixture
def tiny_recipe(make_recipe: MakeRecipe) -> Recipe:
    return make_recipe()


@pytest.fixture
def make_dataset() -> MakeDataset:
    def make(*, classes: int = 3, skipped: tuple[Skipped, ...] = (), overlap: int = 0) -> Dataset:
        random = np.random.default_rng(0)

        def split(images_a_class: int) -> Split:
            labels = np.tile(np.arange(classes, dtype=np.int64), images_a_class)
            return Split(images=random.integers(0, 256, (len(labels), 8, 8, 1), dtype=np.uint8), labels=labels)

        return Dataset(
            name="tiny",
            labels=tuple(f"class {index}" for index in range(classes)),
            train=split(6),
            validation=split(2),
            test=split(4),
            fingerprint="f1" * 32,
            test_fingerprint="7e" * 32,
            skipped=skipped,
            overlap=overlap,
        )

    return make


@pytest.fixture
def tiny_dataset(make_dataset: MakeDataset) -> Dataset:
    return make_dataset()


@pytest.fixture
def answers() -> Any:
    """A function: a network's probabilities for a test split, right everywhere but on the first `wrong` images."""

    def answer(dataset: Dataset, *, wrong: int = 1) -> NDArray[np.float32]:
        classes = len(dataset.labels)
        named = dataset.test.labels.copy()
        named[:wrong] = (named[:wrong] + 1) % classes
        sure = np.full((len(named), classes), 0.1 / (classes - 1), dtype=np.float32)
        sure[np.arange(len(named)), named] = 0.9
        return sure

    return answer
