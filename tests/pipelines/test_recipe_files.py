"""Recipe files: names, paths, `--set`, and the recipes that Stride brings."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import RecipeError
from contracts.recipe import Backbone, Convnet, json_schema
from pipelines import recipe_files


@pytest.mark.parametrize("name", recipe_files.names())
def test_every_recipe_is_valid_and_says_what_it_is(name: str) -> None:
    recipe = recipe_files.load(name)
    assert recipe.name == name
    assert len(recipe.description) > 20


def test_the_digits_recipes_compete_for_one_model() -> None:
    names = ("digits", "digits-wide", "digits-batchnorm")
    recipes = [recipe_files.load(name) for name in names]
    assert {recipe.model_name for recipe in recipes} == {"digits"}
    assert len({recipe.digest() for recipe in recipes}) == 3
    assert all(recipe.data == recipes[0].data for recipe in recipes)  # else their test images are not the same


def test_an_unknown_name_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match=r"recipe 'fasion' is not known; did you mean 'fashion'\?"):
        recipe_files.load("fasion")


def test_a_recipe_is_loaded_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((recipe_files.DIRECTORY / "digits.yaml").read_text())
    assert recipe_files.load(str(path)).name == "mine"


def test_a_missing_file_is_named() -> None:
    with pytest.raises(RecipeError, match=r"'nowhere/mine\.yaml' does not exist"):
        recipe_files.load("nowhere/mine.yaml")


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model_name: a\nmodel_name: b\n")
    with pytest.raises(RecipeError, match=r"line 2: key 'model_name' stands twice"):
        recipe_files.load(str(path))


@pytest.mark.parametrize("text", ["- a\n- b\n", "", "just words\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="expected a mapping"):
        recipe_files.load(str(path))


def test_set_takes_numbers_lists_booleans_and_null() -> None:
    recipe = recipe_files.load(
        "digits", ["optimizer.lr=3e-4", "export.batch_sizes=[1, 2]", "fit.restore_best=false", "fit.clip_norm=null"]
    )
    assert recipe.optimizer.lr == 3e-4
    assert recipe.export.batch_sizes == (1, 2)
    assert recipe.fit.restore_best is False
    assert recipe.fit.clip_norm is None


def test_set_reaches_into_a_list_by_index() -> None:
    recipe = recipe_files.load("digits", ["model.blocks.0.filters=48"])
    assert isinstance(recipe.model, Convnet)
    assert [block.filters for block in recipe.model.blocks] == [48, 64]


def test_set_replaces_a_whole_part() -> None:
    recipe = recipe_files.load("digits", ["model={kind: backbone, name: resnet18}"])
    assert isinstance(recipe.model, Backbone)


def test_set_of_an_unknown_key_names_the_nearest_one() -> None:
    with pytest.raises(RecipeError, match=r"key 'optimizer\.learning_rat' is not known; known keys|did you mean"):
        recipe_files.load("digits", ["optimizer.learning_rat=1"])
    with pytest.raises(RecipeError, match=r"key 'optimzer' is not known; did you mean 'optimizer'\?"):
        recipe_files.load("digits", ["optimzer.lr=1"])


@pytest.mark.parametrize("item", ["optimizer.lr", "=3", "a..b=1"])
def test_set_without_key_and_value_is_refused(item: str) -> None:
    with pytest.raises(RecipeError, match="is not KEY=VALUE"):
        recipe_files.load("digits", [item])


@pytest.mark.parametrize("part", ["7", "first", "-1"])
def test_set_of_an_index_that_is_not_there_says_which_are(part: str) -> None:
    with pytest.raises(RecipeError, match=r"model\.blocks is a list of 2; give an index from 0 to 1"):
        recipe_files.load("digits", [f"model.blocks.{part}.filters=1"])


def test_a_value_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"the value '\[1, 2' is not YAML"):
        recipe_files.load("digits", ["export.batch_sizes=[1, 2"])


def test_a_dumped_recipe_is_read_back_equal(tmp_path: Path) -> None:
    recipe = recipe_files.load("fashion", ["optimizer.lr=3e-4"])
    path = tmp_path / "again.yaml"
    path.write_text(recipe_files.dump(recipe))
    assert recipe_files.load(str(path)).digest() == recipe.digest()


def test_the_schema_knows_every_key_of_a_recipe_file() -> None:
    known = set(json_schema()["properties"])
    assert {"data", "model", "optimizer", "fit", "gate"} <= known
