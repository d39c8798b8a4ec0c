from __future__ import annotations

from typing import Any

from services.training.parameters import LONGEST, flatten


def test_keys_are_dotted_and_values_are_text(make_recipe: Any) -> None:
    values = flatten(make_recipe())
    assert values["data.image.height"] == "8"
    assert values["model.blocks.0.filters"] == "4"
    assert values["optimizer.betas"] == "[0.9, 0.999]"
    assert values["data.validation"] == "0.1"
    assert values["fit.restore_best"] == "true"
    assert values["data.path"] == "null"


def test_runs_of_the_same_kind_have_the_same_keys(make_recipe: Any) -> None:
    image = {"height": 8, "width": 8, "channels": 1}
    other = make_recipe(
        fit={"early_stopping": {"patience": 2}, "clip_norm": 1.0},
        data={"dataset": "digits", "image": image, "normalize": {"mean": [0.5], "std": [0.5]}, "classes": ["1", "2"]},
        published={"test_accuracy": 0.9},
        optimizer={"name": "sgd", "momentum": 0.9},
    )
    assert list(flatten(other)) == list(flatten(make_recipe()))


def test_no_value_of_the_recipe_is_left_out(make_recipe: Any) -> None:
    recipe = make_recipe(fit={"early_stopping": {"patience": 2}})

    def leaves(value: Any) -> int:
        if isinstance(value, dict):
            return sum(leaves(item) for item in value.values())
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return sum(leaves(item) for item in value)
        return 1

    assert len(flatten(recipe)) == leaves(recipe.model_dump(mode="json"))


def test_an_empty_value_is_visible(make_recipe: Any) -> None:
    assert flatten(make_recipe())["description"] == '""'


def test_long_values_are_cut_and_still_differ(make_recipe: Any) -> None:
    cut = [flatten(make_recipe(description="x" * 9000 + end))["description"] for end in ("a", "b")]
    assert all(len(value) <= LONGEST for value in cut)
    assert cut[0] != cut[1]
