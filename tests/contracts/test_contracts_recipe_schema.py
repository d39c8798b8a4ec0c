"""The JSON schema of a recipe, as an editor uses it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from contracts import recipe
from tests.contracts.recipes import Content, good_content, with_key

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


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


def test_the_json_schema_accepts_a_good_recipe() -> None:
    schema = recipe.json_schema()
    assert _follows(good_content(), schema, schema)
    whole = recipe.parse(good_content(), name="mine").model_dump(mode="json")
    assert _follows(whole, schema, schema)


@pytest.mark.parametrize(
    "content",
    [
        with_key("optimiser", {}),
        with_key("model.blocks.0.filtres", 1),
        with_key("model.blocks.0.filters", 0),
        with_key("optimizer.name", "adamm"),
        with_key("data.image.channels", 2),
        with_key("data.validation", 1.5),
        with_key("model.kind", "cnn"),
        {"data": good_content()["data"]},
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
