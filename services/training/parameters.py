"""A recipe as MLflow's parameters: dotted keys, the same ones in every run of the same kind of network.

data.image.height = 28     model.blocks.0.filters = 32     fit.early_stopping.patience = null
"""

from __future__ import annotations

import hashlib
import json
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

from contracts.recipe import Recipe

LONGEST: Final = 500
"""Characters of a value; MLflow takes more, its compare view shows less."""


def flatten(recipe: Recipe) -> dict[str, str]:
    """Every value of the recipe under its dotted key, none left out.

    A part that is null still has its keys (`null`), so that runs with and without it line up. A value longer than
    `LONGEST` is cut, with a digest of the whole, so that two of them still compare rightly.
    """
    return {key: _cut(value) for key, value in _walk("", recipe, Recipe)}


def _walk(key: str, value: Any, annotation: Any) -> list[tuple[str, str]]:
    prefix = f"{key}." if key else ""
    part = _part(annotation, value)
    if part is not None:
        found: list[tuple[str, str]] = []
        for name, field in part.model_fields.items():
            child = None if value is None else getattr(value, name)
            found += _walk(f"{prefix}{name}", child, field.annotation)
        return found
    if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        return [pair for index, item in enumerate(value) for pair in _walk(f"{prefix}{index}", item, type(item))]
    return [(key, _text(value))]


def _part(annotation: Any, value: Any) -> type[BaseModel] | None:
    """The model whose fields become keys; None for a leaf.

    `"unit" | Normalize` is a leaf although it may hold a model: otherwise its keys would depend on its value.
    """
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    models = [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]
    if len(models) < len([option for option in options if option is not type(None)]):
        return None
    if value is None:
        return models[0] if models else None
    return type(value) if isinstance(value, BaseModel) else None


def _text(value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    return json.dumps(TypeAdapter(Any).dump_python(value, mode="json"), ensure_ascii=False)


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    tail = f"… ({len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]})"
    return text[: LONGEST - len(tail)] + tail
