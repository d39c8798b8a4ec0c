"""Recipes: what is refused, with which sentence, and what identifies a fit."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from contracts import recipe, recipe_data, recipe_fit, recipe_model, recipe_part
from contracts.errors import RecipeError

Content = dict[str, Any]


def _content() -> Content:
    return {
        "data": {"dataset": "digits", "image": {"height": 28, "width": 28, "channels": 1}},
        "model": {"kind": "convnet", "blocks": [{"filters": 8}], "head": {"units": [16]}},
    }


def _with(path: str, value: object) -> Content:
    """The good recipe with one key set; numbers in the path are places in a list."""
    content = _content()
    *parents, last = path.split(".")
    part: Any = content
    for name in parents:
        part = part[int(name)] if name.isdigit() else part.setdefault(name, {})
    part[last] = value
    return content


def _refusal(content: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe.parse(content, name="mine")
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_short_recipe_is_completed_with_the_defaults() -> None:
    parsed = recipe.parse(_content(), name="mine")
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
    assert f"recipe 'mine': key '{path}' is not known; {hint}" in _refusal(_with(path, 1))


def test_a_key_of_the_other_kind_of_model_is_not_offered_as_its_own_remedy() -> None:
    message = _refusal(_with("model.weights", "imagenet"))
    assert message.startswith("recipe 'mine': key 'model.weights' is not known; known keys here are blocks, head")
    backbone = _with("model", {"kind": "backbone", "name": "resnet18", "blocks": []})
    assert "known keys here are frozen, head, init, kind, name, output, trainable_from" in _refusal(backbone)


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
    content = _content()
    for path, value in changes.items():
        *parents, last = path.split(".")
        part: Any = content
        for name in parents:
            part = part.setdefault(name, {})
        part[last] = value
    assert _refusal(content) == f"recipe 'mine': {sentence}"


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
    assert _refusal(_with(path, value)) == f"recipe 'mine': {sentence}"


@pytest.mark.parametrize("key", ["data", "model"])
def test_a_missing_part_is_named(key: str) -> None:
    content = _content()
    del content[key]
    assert _refusal(content) == f"recipe 'mine': key '{key}' is missing; add it."


def test_a_model_without_a_kind_is_told_the_kinds() -> None:
    content = _content()
    del content["model"]["kind"]
    assert _refusal(content) == "recipe 'mine': key 'model.kind' is missing; add it, 'convnet' or 'backbone'."


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_a_file_that_holds_no_keys_is_refused(content: object) -> None:
    assert "expected keys and values" in _refusal(content)


def test_a_key_that_is_not_text_is_refused() -> None:
    assert "keys should be strings" in _refusal({**_content(), 1: 2})


def test_a_long_value_does_not_drown_the_sentence() -> None:
    assert len(_refusal(_with("data", "x" * 10_000))) < 200


def test_a_recipe_cannot_be_changed_after_it_was_validated() -> None:
    parsed = recipe.parse(_content(), name="mine")
    with pytest.raises(ValueError, match="frozen"):
        parsed.fit.epochs = 3  # type: ignore[misc]


def test_the_digest_does_not_depend_on_the_order_of_keys() -> None:
    def reversed_keys(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reversed_keys(value[key]) for key in reversed(value)}
        return value

    digest = recipe.parse(_content(), name="mine").digest()
    assert recipe.parse(reversed_keys(_content()), name="mine").digest() == digest


def test_the_digest_does_not_depend_on_whether_a_default_is_written_out() -> None:
    plain = recipe.parse(_content(), name="mine")
    assert recipe.parse(plain.model_dump(mode="json"), name="mine").digest() == plain.digest()
    assert recipe.parse(_with("optimizer.lr", 0.001), name="mine").digest() == plain.digest()


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
    digest = recipe.parse(_content(), name="mine").digest()
    assert recipe.parse(_with(path, value), name="mine").digest() == digest


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
    digest = recipe.parse(_content(), name="mine").digest()
    assert recipe.parse(_with(path, value), name="mine").digest() != digest


def test_the_order_of_classes_counts_because_it_is_the_order_of_the_output() -> None:
    digests = {recipe.parse(_with("data.classes", order), name="m").digest() for order in (["1", "2"], ["2", "1"])}
    assert len(digests) == 2


def test_no_augmentation_is_any_only_when_something_is_on() -> None:
    assert not recipe.Augmentation().any
    assert not recipe.Augmentation(fill="zeros").any
    assert not recipe.Augmentation(fill="constant", fill_value=9).any
    assert recipe.Augmentation(zoom=0.1).any
    assert recipe.Augmentation(cutmix=1).any


def _follows(value: Any, schema: Content, root: Content) -> bool:
    """Whether a value follows a schema; knows the words of JSON schema that pydantic writes for a recipe."""
    if "$ref" in schema:
        schema = {**root["$defs"][schema["$ref"].removeprefix("#/$defs/")], **schema, "$ref": ""}
    schema = {key: word for key, word in schema.items() if word != ""}
    checks: dict[str, Callable[[Any], bool]] = {
        "anyOf": lambda options: any(_follows(value, option, root) for option in options),
        "oneOf": lambda options: sum(_follows(value, option, root) for option in options) == 1,
        "const": lambda wanted: bool(value == wanted),
        "enum": lambda wanted: value in wanted,
        "type": lambda kind: isinstance(value, _TYPES[kind]) and not (isinstance(value, bool) and kind != "boolean"),
        "minimum": lambda bound: value >= bound,
        "maximum": lambda bound: value <= bound,
        "exclusiveMinimum": lambda bound: value > bound,
        "exclusiveMaximum": lambda bound: value < bound,
        "minItems": lambda bound: len(value) >= bound,
        "required": lambda keys: set(keys) <= set(value),
        "additionalProperties": lambda allowed: allowed or set(value) <= set(schema["properties"]),
        "properties": lambda parts: all(_follows(value[key], parts[key], root) for key in parts if key in value),
        "items": lambda item: all(_follows(element, item, root) for element in value),
    }
    # `type` first: the other words presume it.
    ordered = sorted((key for key in schema if key in checks), key=lambda key: key != "type")
    return all(checks[key](schema[key]) for key in ordered)


_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def test_the_json_schema_accepts_a_good_recipe() -> None:
    schema = recipe.json_schema()
    assert _follows(_content(), schema, schema)
    whole = recipe.parse(_content(), name="mine").model_dump(mode="json")
    assert _follows(whole, schema, schema)


@pytest.mark.parametrize(
    "content",
    [
        _with("optimiser", {}),
        _with("model.blocks.0.filtres", 1),
        _with("model.blocks.0.filters", 0),
        _with("optimizer.name", "adamm"),
        _with("data.image.channels", 2),
        _with("data.validation", 1.5),
        _with("model.kind", "cnn"),
        {"data": _content()["data"]},
    ],
)
def test_the_json_schema_refuses_a_bad_recipe(content: Content) -> None:
    schema = recipe.json_schema()
    assert not _follows(copy.deepcopy(content), schema, schema)


def test_the_json_schema_explains_fields_to_an_editor() -> None:
    schema = recipe.json_schema()
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["required"] == ["data", "model"]
    assert schema["$defs"]["Optimizer"]["properties"]["smoothing"]["description"].startswith("Of rmsprop")
    assert schema["$defs"]["ImageSpec"]["properties"]["height"]["description"] == "Rows of pixels."
    assert schema["properties"]["model_name"]["description"].startswith("The registered model")


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
    content = _content() | {"schedule": {"name": name, "warmup": 0.1}}
    with pytest.raises(RecipeError, match=r"schedule\.warmup is used by cosine and one_cycle only"):
        recipe.parse(content, name="warm")


def _backbone(**parts: Any) -> Content:
    return _content() | {"model": {"kind": "backbone", "name": "vgg16", **parts}}


def test_a_backbone_of_an_older_recipe_is_still_one() -> None:
    parsed = recipe.parse(_backbone(weights="imagenet", head="linear", output="sigmoid"), name="old")
    assert parsed.output == "sigmoid"


def test_dense_layers_on_a_backbone_say_the_output() -> None:
    parsed = recipe.parse(_backbone(head={"units": [256], "output": "sigmoid"}), name="dense")
    assert parsed.output == "sigmoid"
    assert recipe.parse(parsed.model_dump(mode="json"), name="dense").digest() == parsed.digest()


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"weights": "imagenett"}, "model.weights is 'imagenett'; input should be 'none' or 'imagenet'."),
        ({"weights": {"fil": "a"}}, "key 'model.weights.fil' is not known; did you mean 'model.weights.file'?"),
        ({"weights": {}}, "model.weights needs one of file, run, recipe and model, it has none of them."),
        (
            {"weights": {"file": "a", "run": "b"}},
            "model.weights needs one of file, run, recipe and model, it has file and run.",
        ),
        (
            {"weights": {"run": "b", "alias": "c"}},
            "model.weights: version and alias are of a registered model, not of a run.",
        ),
        (
            {"weights": {"model": "b", "alias": "c", "version": 1}},
            "model.weights has a version and an alias; keep one of them.",
        ),
        ({"weights": {"run": "b", "sha256": "0" * 64}}, "model.weights.sha256 is of a file, not of a run; remove it."),
        ({"head": {"unit": [1]}}, "key 'model.head.unit' is not known; did you mean 'model.head.units'?"),
        ({"head": "dense"}, "model.head is 'dense'; input should be 'linear'."),
        ({"frozen": "base"}, "model.frozen is 'base'; write a list, as in [a, b]."),
        (
            {"frozen": ["base"], "trainable_from": "block3"},
            "model.frozen holds the whole base, model.trainable_from a part of it; remove one of them.",
        ),
        (
            {"head": {"units": [4]}, "output": "sigmoid"},
            "model.output is of the linear head; with dense layers set model.head.output to 'sigmoid'.",
        ),
    ],
)
def test_a_transfer_that_cannot_be_followed_is_refused(parts: Content, sentence: str) -> None:
    assert _refusal(_backbone(**parts)) == f"recipe 'mine': {sentence}"
