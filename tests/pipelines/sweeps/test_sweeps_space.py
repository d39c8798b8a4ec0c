from __future__ import annotations

import pytest

from contracts.errors import RecipeError
from pipelines.sweeps import space
from pipelines.sweeps.space import Dimension


def test_every_kind_of_dimension_is_read() -> None:
    read = space.parse(
        [
            "optimizer.lr=loguniform(1e-4, 1e-1)",
            "model.head.dropout = uniform(0, 0.5)",
            "fit.batch_size=choice(32, 64)",
            "model.head.units=choice([64], [64, 32])",
            "optimizer.name=choice(adam, sgd)",
            "fit.ema=choice(null, 0.99)",
            "fit.epochs=randint(2, 4)",
            "model.blocks.0.filters=lograndint(8, 64)",
        ]
    )
    assert read["optimizer.lr"] == Dimension(kind="loguniform", low=1e-4, high=0.1)
    assert read["model.head.dropout"] == Dimension(kind="uniform", low=0, high=0.5)
    assert read["fit.batch_size"].choices == (32, 64)
    assert read["model.head.units"].choices == ([64], [64, 32])
    assert read["optimizer.name"].choices == ("adam", "sgd")
    assert read["fit.ema"].choices == (None, 0.99)
    assert str(read["fit.epochs"]) == "randint(2, 4)"
    assert read["model.blocks.0.filters"].log
    space.check(read, "digits", ["model.blocks.1.filters=8"])


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("optimizer.lr", "is not KEY=KIND"),
        ("optimizer.lr=1e-3", "is not KEY=KIND"),
        ("optimizer.lr=lognormal(1, 2)", "'lognormal' is not known; use one of choice"),
        ("optimizer.lr=loguniform(0, 1)", "begins at 0"),
        ("optimizer.lr=uniform(1, 1)", "two numbers, the lower one first"),
        ("optimizer.lr=uniform(1)", "two numbers"),
        ("optimizer.lr=uniform(a, b)", "two numbers"),
        ("optimizer.lr=uniform(0, .inf)", "two numbers"),
        ("optimizer.lr=uniform(true, 2)", "two numbers"),
        ("fit.epochs=randint(1.5, 3)", "whole numbers; for others use uniform"),
        ("fit.epochs=lograndint(1.5, 3)", "whole numbers; for others use loguniform"),
        ("fit.epochs=choice(1)", "two different values"),
        ("fit.epochs=choice(1, 1, 2)", "each of them once"),
        ("fit.epochs=choice([1, 2)", "no list of values"),
    ],
)
def test_a_bad_item_is_named_in_one_sentence(item: str, said: str) -> None:
    with pytest.raises(RecipeError, match=r"^--space ") as raised:
        space.parse([item])
    assert said in raised.value.message


def test_an_empty_space_and_a_key_given_twice_are_refused() -> None:
    with pytest.raises(RecipeError, match="--space is missing"):
        space.parse([])
    with pytest.raises(RecipeError, match="given twice"):
        space.parse(["fit.epochs=choice(1, 2)", "fit.epochs=randint(1, 2)"])


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("optimizer.rate=uniform(0.1, 1)", "did you mean"),
        ("optimizer.lr=uniform(-1, 1)", "optimizer.lr is -1"),
        ("optimizer.name=choice(adam, adamm)", "adamm"),
        ("gate.min_accuracy=uniform(0.1, 0.9)", "make no different fits"),
        ("data.validation=uniform(0.1, 0.9)", "judged on the same images"),
        ("model.head.units.3=choice(32, 64)", "is a list of 1"),
    ],
)
def test_a_space_that_the_recipe_cannot_follow_is_refused_before_anything_runs(item: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        space.check(space.parse([item]), "digits", [])
    assert said in raised.value.message


def test_real_numbers_get_six_digits_and_stay_within_their_ends() -> None:
    dimension = Dimension(kind="uniform", low=0.0, high=0.3333333333)
    assert dimension.value(0.123456789) == 0.123457
    assert dimension.value(0.3333333333) <= 0.3333333333
    assert Dimension(kind="choice", choices=([64], None)).value("[64]") == [64]


def test_values_reach_the_recipe_as_they_are() -> None:
    values = {"optimizer.lr": 1e-05, "optimizer.name": "sgd", "model.head.units": [16, 8], "fit.ema": None}
    recipe = space.with_values("digits", ["fit.epochs=2"], values)
    assert recipe.optimizer.lr == 1e-05
    assert recipe.optimizer.name == "sgd"
    assert recipe.fit.epochs == 2
    assert recipe.fit.ema is None
    assert recipe.model.head.units == (16, 8)  # type: ignore[union-attr]
