"""Recipe files: names, paths, `--set`, and the recipes that Stride brings."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import RecipeError
from contracts.recipe import Backbone, Convnet, Weights, json_schema
from pipelines import recipe_files
from pipelines.cli.recipes import describe


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


def test_a_value_that_yaml_takes_for_an_impossible_date_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--set data\.path: the value '2023-99-99' is not YAML"):
        recipe_files.load("folder", ["data.path=2023-99-99"])
    path = tmp_path / "mine.yaml"
    path.write_text("model_name: 2023-99-99\n")
    with pytest.raises(RecipeError, match="is not valid YAML"):
        recipe_files.load(str(path))


def test_classes_and_paths_that_look_like_numbers_are_names() -> None:
    assert recipe_files.load("digits", ["data.classes=[3, 8]"]).data.classes == ("3", "8")
    assert recipe_files.load("folder", ["data.path=2024"]).data.path == "2024"


def test_a_list_that_was_written_as_words_is_answered_with_how_to_write_it() -> None:
    with pytest.raises(RecipeError, match=r"data\.classes is '3,8'; write a list, as in \[a, b\]"):
        recipe_files.load("digits", ["data.classes=3,8"])


@pytest.mark.parametrize("name", recipe_files.names())
def test_the_network_of_every_recipe_has_the_parameters_that_were_published(name: str) -> None:
    described = describe(recipe_files.load(name))
    published = described["published"]
    for key in ("parameters", "trainable_parameters"):
        assert published[key] in (None, described[key])


def test_the_vgg16_recipes_train_what_the_course_trains() -> None:
    counts = {
        name: (described["parameters"], described["trainable_parameters"])
        for name in ("deer-horse-vgg16", "deer-horse-vgg16-finetuned")
        if (described := describe(recipe_files.load(name)))
    }
    assert counts["deer-horse-vgg16"] == (14_846_273, 131_585)
    assert counts["deer-horse-vgg16-finetuned"] == (14_846_273, 14_586_113)
    assert 14_846_273 - 14_586_113 == 260_160


def test_both_stages_of_vgg16_are_one_network_on_the_same_images() -> None:
    first, second = (recipe_files.load(name) for name in ("deer-horse-vgg16", "deer-horse-vgg16-finetuned"))
    assert (first.data, first.augmentation) == (second.data, second.augmentation)
    assert isinstance(first.model, Backbone)
    assert isinstance(second.model, Backbone)
    assert first.model.head == second.model.head
    assert second.model.weights == Weights(recipe=first.name, include="all")


def test_what_somebody_else_sends_is_resolved_as_a_command_would() -> None:
    changes = {"fit.epochs": 3, "optimizer.lr": 1e-5, "model.head.units": [8]}
    typed = ["fit.epochs=3", "optimizer.lr=1.0e-05", "model.head.units=[8]"]
    assert recipe_files.resolve("digits", changes) == recipe_files.load("digits", typed)


def test_a_whole_recipe_is_resolved_and_left_as_it_was() -> None:
    content = recipe_files.load("digits").model_dump(mode="json")
    before = repr(content)
    assert recipe_files.resolve({**content, "name": "mine"}, {"model.blocks.0.filters": 3}).name == "mine"
    assert repr(content) == before


@pytest.mark.parametrize(
    ("recipe", "overrides", "sentence"),
    [
        ("digitz", {}, "recipe 'digitz' is not known; did you mean 'digits'?"),
        (
            "./digits.yaml",
            {},
            "recipe './digits.yaml' is a path; give a recipe's name, or the recipe itself as an object.",
        ),
        ({"model": {}}, {}, "recipe: key 'name' is missing; add it."),
        ("digits", {"fit..epochs": 1}, "--set 'fit..epochs' is not a key; write it like optimizer.lr."),
        ("digits", {"model.blocks.9.filters": 1}, "--set model.blocks.9: model.blocks is a list of "),
    ],
)
def test_what_cannot_be_resolved_is_one_sentence(
    recipe: str | dict[str, object], overrides: dict[str, object], sentence: str
) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe_files.resolve(recipe, overrides)
    assert refused.value.message.startswith(sentence)
