"""The JSON schema of a recipe file, with the string below each field as its description."""

from __future__ import annotations

import ast
import inspect
import itertools
from typing import Any

from pydantic import BaseModel

from contracts.recipe_part import models_in


def json_schema(recipe: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a recipe file, for editors (name and model_name default to the file's name)."""
    schema = recipe.model_json_schema()
    schema["required"] = [key for key in schema["required"] if key not in ("name", "model_name")]
    for key, model in _parts(recipe).items():
        properties = (schema if model is recipe else schema["$defs"][key])["properties"]
        for field, text in _attribute_docstrings(model).items():
            properties[field]["description"] = text
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _attribute_docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field. Pydantic could collect them too, but whenever the models are imported."""
    definition = ast.parse(inspect.getsource(model)).body[0]
    found: dict[str, str] = {}
    for field, text in itertools.pairwise(getattr(definition, "body", [])):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _parts(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """By name, the model and all the models in it."""
    found = {model.__name__: model}
    for field in model.model_fields.values():
        for part in models_in(field.annotation):
            found |= _parts(part)
    return found
