"""Recipes: what is refused, and with which sentence."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from contracts import recipe, recipe_data, recipe_fit, recipe_model, recipe_part
from contracts.errors import RecipeError
from tests.contracts.recipes import Content, good_content, refusal_of, with_key


def test_a_short_recipe_is_completed_with_the_defaults() -> None:
    parsed = recipe.parse(good_content(), name="mine")
    assert (parsed.name, parsed.model_name) == ("mine", "mine")
    assert parsed.optimizer.name == "adam"
    assert parsed.output == "softmax"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("optimiser", "did you mean 'optimizer'?"),
        ("data.imgae", "did you mean 'data.image'?"),
        ("data.image.heigth", "did you mean 'data.image.height'?"),
        ("data.normalize.sdt", "did you mean 'data.normalize.std'?"),
        ("model.bloks", "did you mean 'model.blocks'?"),
        ("model.blocks.0.filtres", "did you mean 'model.blocks.0.filters'?"),
        ("model.head.droput", "did you mean 'model.head.dropout'?"),
        ("augmentation.flip_horizontl", "did you mean 'augmentation.flip_horizontal'?"),
        ("optimizer.learning", "known keys here are betas, epsilon"),
        ("schedule.pacience", "did you mean 'schedule.patience'?"),
        ("fit.epoch", "did you mean 'fit.epochs'?"),
        ("fit.early_stopping.patence", "did you mean 'fit.early_stopping.patience'?"),
        ("export.tolerence", "did you mean 'export.tolerance'?"),
        ("gate.min_acuracy", "did you mean 'gate.min_accuracy'?"),
        ("published.test_acc", "did you mean 'published.test_accuracy'?"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one_on_every_level(path: str, hint: str) -> None:
    assert f"recipe 'mine': key '{path}' is not known; {hint}" in refusal_of(with_key(path, 1))


def test_a_key_of_the_other_kind_of_model_is_not_offered_as_its_own_remedy() -> None:
    message = refusal_of(with_key("model.weights", "imagenet"))
    assert message.startswith("recipe 'mine': key 'model.weights' is not known; known keys here are blocks, head")
    backbone = with_key("model", {"kind": "backbone", "name": "resnet18", "blocks": []})
    assert "known keys here are frozen, head, init, kind, name, output, trainable_from" in refusal_of(backbone)


# One line a combination that cannot work: what is set, and the sentence that says what to change.
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data.path": "x"}, "dataset 'digits' takes no data.path."),
        ({"data.dataset": "folder"}, "dataset 'folder' needs data.path."),
        ({"data.classes": ["1"]}, "data.classes ['1'] must name at least two different classes."),
        ({"data.classes": ["1", "1"]}, "data.classes ['1', '1'] must name at least two different classes."),
        (
            {"data.classes": ["1", "2", "3"], "model.head.output": "sigmoid"},
            "one sigmoid unit tells two classes apart, data.classes has 3; use softmax.",
        ),
        (
            {"model.head.output": "sigmoid", "fit.label_smoothing": 0.1},
            "fit.label_smoothing is for softmax; set it to 0 or the output to softmax.",
        ),
        ({"data.normalize": {"mean": [0.5] * 3, "std": [1]}}, "data.normalize.mean must have 1 values, one a channel."),
        ({"data.normalize": {"mean": [0.5], "std": [1, 1]}}, "data.normalize.std must have 1 values, one a channel."),
        ({"augmentation": {"fill_value": 3}}, "augmentation.fill_value needs augmentation.fill 'constant'."),
        (
            {"augmentation": {"hue": 0.1}},
            "augmentation.saturation and augmentation.hue need data.image.channels 3; set them to 0.",
        ),
        (
            {"augmentation": {"fill": "reflect", "crop_padding": 28}},
            "augmentation.crop_padding must be less than the image's side where fill is 'reflect'.",
        ),
        (
            {"model.blocks": [{"filters": 4, "residual": True}]},
            "a residual block keeps its size: set its stride to 1, padding to 'same', kernel to odd.",
        ),
        (
            {"optimizer": {"nesterov": True}},
            "optimizer.nesterov needs optimizer.name 'sgd' and optimizer.momentum above 0.",
        ),
        (
            {"optimizer": {"name": "sgd", "nesterov": True}},
            "optimizer.nesterov needs optimizer.name 'sgd' and optimizer.momentum above 0.",
        ),
        (
            {"optimizer": {"epsilon_inside_sqrt": True}},
            "optimizer.epsilon_inside_sqrt is known of optimizer.name 'rmsprop' only.",
        ),
        (
            {"optimizer": {"momentum": 0.9}},
            "optimizer.momentum is not used by optimizer.name 'adam'; set optimizer.betas.",
        ),
    ],
)
def test_an_impossible_combination_is_refused_with_what_to_change(changes: Content, sentence: str) -> None:
    content = good_content()
    for path, value in changes.items():
        *parents, last = path.split(".")
        part: Any = content
        for name in parents:
            part = part.setdefault(name, {})
        part[last] = value
    assert refusal_of(content) == f"recipe 'mine': {sentence}"


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("optimizer.name", "adamm", "optimizer.name is 'adamm'; input should be 'sgd', 'adam', 'adamw' or 'rmsprop'."),
        ("optimizer.lr", 0, "optimizer.lr is 0; input should be greater than 0."),
        ("optimizer.lr", float("nan"), "optimizer.lr is nan; input should be a finite number."),
        ("optimizer.lr", float("inf"), "optimizer.lr is inf; input should be a finite number."),
        ("model.blocks.0.filters", 0, "model.blocks.0.filters is 0; input should be greater than or equal to 1."),
        ("model.blocks", [], "model.blocks is []; tuple should have at least 1 item after validation, not 0."),
        ("model.kind", "cnn", "model.kind is 'cnn'; use one of 'convnet', 'backbone'."),
        ("data.normalize", "standrd", "data.normalize is 'standrd'; input should be 'auto', 'unit' or 'standard'."),
        ("data.normalize", {"mean": [1]}, "key 'data.normalize.std' is missing; add it."),
        ("data.validation", 1, "data.validation is 1; input should be less than 1."),
        ("data.image.channels", 2, "data.image.channels is 2; input should be 1 or 3."),
        ("data.image", None, "data.image is None; expected keys and values."),
        ("data", "mnist", "data is 'mnist'; expected keys and values."),
        ("fit", 3, "fit is 3; expected keys and values."),
        ("fit.precision", "int8", "fit.precision is 'int8'; input should be 'auto', 'fp32', 'bf16' or 'fp16'."),
        ("export.opset", 7, "export.opset is 7; input should be greater than or equal to 18."),
        ("name", "Not a slug", "name is 'Not a slug'; string should match pattern '^[a-z0-9][a-z0-9._-]{0,63}$'."),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_what_was_expected(path: str, value: object, sentence: str) -> None:
    assert refusal_of(with_key(path, value)) == f"recipe 'mine': {sentence}"


@pytest.mark.parametrize("key", ["data", "model"])
def test_a_missing_part_is_named(key: str) -> None:
    content = good_content()
    del content[key]
    assert refusal_of(content) == f"recipe 'mine': key '{key}' is missing; add it."


def test_a_model_without_a_kind_is_told_the_kinds() -> None:
    content = good_content()
    del content["model"]["kind"]
    assert refusal_of(content) == "recipe 'mine': key 'model.kind' is missing; add it, 'convnet' or 'backbone'."


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_file_that_holds_no_keys_is_refused(content: object) -> None:
    assert "expected keys and values" in refusal_of(content)


def test_a_key_that_is_not_text_is_refused() -> None:
    assert "keys should be strings" in refusal_of({**good_content(), 1: 2})


def test_a_long_value_does_not_drown_the_sentence() -> None:
    assert len(refusal_of(with_key("data", "x" * 10_000))) < 200


def test_a_recipe_cannot_be_changed_after_it_was_validated() -> None:
    parsed = recipe.parse(good_content(), name="mine")
    with pytest.raises(ValueError, match="frozen"):
        parsed.fit.epochs = 3  # type: ignore[misc]


def test_no_augmentation_is_any_only_when_something_is_on() -> None:
    assert not recipe.Augmentation().any
    assert not recipe.Augmentation(fill="zeros").any
    assert not recipe.Augmentation(fill="constant", fill_value=9).any
    assert recipe.Augmentation(zoom=0.1).any
    assert recipe.Augmentation(cutmix=1).any


def test_every_part_is_to_be_had_from_the_module_of_the_recipe() -> None:
    parts = {
        name
        for module in (recipe_data, recipe_fit, recipe_model)
        for name, part in vars(module).items()
        if isinstance(part, type) and issubclass(part, recipe_part.Part) and part is not recipe_part.Part
    }
    assert {"Data", "Backbone", "Schedule"} <= parts
    assert parts <= set(recipe.__all__)


def test_reading_recipes_waits_for_neither_numpy_nor_pillow() -> None:
    code = "import contracts.recipe, contracts.bundle, sys; print(sorted({'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_a_warmup_that_no_schedule_would_follow_is_refused(name: str) -> None:
    content = good_content() | {"schedule": {"name": name, "warmup": 0.1}}
    with pytest.raises(RecipeError, match=r"schedule\.warmup is used by cosine and one_cycle only"):
        recipe.parse(content, name="warm")
