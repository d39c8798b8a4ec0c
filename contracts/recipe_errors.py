"""What is wrong with a recipe, in one sentence: the key, its value, what was expected, the nearest known key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from contracts.recipe_part import models_in


def explain(error: ValidationError, recipe: type[BaseModel]) -> str:
    """The sentence for the most telling of the problems that pydantic found in a recipe; it ends with a full stop."""
    return _sentence(_most_telling(error), recipe)


def _most_telling(error: ValidationError) -> dict[str, Any]:
    """An unknown key explains the keys that are missing; of a value's alternatives, the one it came furthest in."""
    problems = [dict(problem) for problem in error.errors()]
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = _where(problems[0])
    same = [problem for problem in problems if _where(problem)[: len(first)] == first]

    def order(problem: dict[str, Any]) -> tuple[int, bool]:
        # Of `none` and a part with keys, keys were meant where keys are given.
        return -len(_where(problem)), problem["type"] == "literal_error" and isinstance(problem["input"], Mapping)

    return (unknown or sorted(same, key=order))[0]


def _where(problem: dict[str, Any]) -> list[Any]:
    """The path to the value as a recipe spells it: without the names of a union's alternatives."""
    tags = ("convnet", "backbone", "Normalize", "Weights", "Head")
    return [part for part in problem["loc"] if part not in tags and not str(part).startswith(("literal[", "function-"))]


def _sentence(problem: dict[str, Any], recipe: type[BaseModel]) -> str:
    loc = _where(problem)
    key = ".".join(str(part) for part in loc)
    if problem["type"] == "extra_forbidden":
        known = _keys_beside(problem["loc"], recipe)
        near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
        nearest = ".".join([*(str(part) for part in loc[:-1]), *near])
        hint = f"did you mean '{nearest}'?" if near else f"known keys here are {', '.join(known)}."
        return f"key '{key}' is not known; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    match problem["type"]:
        case "missing":
            sentence = f"key '{key}' is missing; add it"
        case "union_tag_not_found":
            sentence = f"key '{key}.kind' is missing; add it, 'convnet' or 'backbone'"
        case "union_tag_invalid":
            sentence = f"{key}.kind is {problem['ctx']['tag']!r}; use one of {problem['ctx']['expected_tags']}"
        case "model_type" | "model_attributes_type":
            sentence = f"{key} is {problem['input']!r:.80}; expected keys and values"
        case "tuple_type":
            sentence = f"{key} is {problem['input']!r:.80}; write a list, as in [a, b]"
        case "value_error":
            sentence = message
        case _:
            sentence = f"{key} is {problem['input']!r:.80}; {message[0].lower()}{message[1:]}"
    return f"{sentence}."


def _keys_beside(loc: Sequence[Any], recipe: type[BaseModel]) -> list[str]:
    """The known keys of the part that `loc` points into, found by walking the annotations."""
    candidates: list[type[BaseModel]] = [recipe]
    for part in loc[:-1]:
        if part in ("convnet", "backbone"):  # the alternative that `kind` chose: the other one's keys are no help
            candidates = [model for model in candidates if model.__name__.lower() == part]
        found = [models_in(model.model_fields[part].annotation) for model in candidates if part in model.model_fields]
        candidates = [model for group in found for model in group] or candidates
    return sorted({key for model in candidates for key in model.model_fields})
