"""Recipe files: those that Stride brings (pipelines/recipes/*.yaml), the user's own, and `--set` on top of either."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from contracts.errors import RecipeError
from contracts.recipe import Recipe, parse

DIRECTORY: Final = Path(__file__).parent / "recipes"


def names() -> list[str]:
    """The names of the recipes that Stride brings, sorted."""
    return sorted(path.stem for path in DIRECTORY.glob("*.yaml"))


def load(recipe: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or by the path of a YAML file, with `--set` items such as `optimizer.lr=3e-4` laid on it.

    Raises:
        RecipeError: no such recipe (the nearest name is given), not YAML, an item without `=`, or not a valid recipe.
    """
    path = _find(recipe)
    content = _read(path)
    for item in overrides:
        override(content, item)
    return parse(content, name=path.stem)


def resolve(recipe: str | Mapping[str, Any], overrides: Mapping[str, Any]) -> Recipe:
    """A recipe that somebody else names or sends, with values laid on it; no file of theirs or of this machine is read.

    Args:
        recipe: The name of one that Stride brings, or the whole content of one with its `name`.
        overrides: By dotted key, as `--set` takes them, with values instead of text.

    Raises:
        RecipeError: as `load` does.
    """
    if isinstance(recipe, str):
        if recipe not in names() and (recipe.endswith((".yaml", ".yml")) or "/" in recipe):
            raise RecipeError(f"recipe {recipe!r} is a path; give a recipe's name, or the recipe itself as an object.")
        content, name = _read(_find(recipe)), recipe
    else:
        content, name = copy.deepcopy(dict(recipe)), str(recipe.get("name", ""))
        if not name:
            raise RecipeError("recipe: key 'name' is missing; add it.")
    for key, value in overrides.items():
        _lay(content, key, copy.deepcopy(value))
    return parse(content, name=name)


def override(content: dict[str, Any], item: str) -> None:
    """Lay one `dotted.key=value` on a recipe's content; the value is YAML, a number in the key is a list's index.

    The key is not looked up here: `parse` knows which keys there are and names the nearest one.

    Raises:
        RecipeError: no `=`, an empty key, a value that is not YAML, or an index that the list does not have.
    """
    key, equals, text = item.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise RecipeError(f"--set {item!r} is not KEY=VALUE; write it like optimizer.lr=3e-4.")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that the calendar does not have
        raise RecipeError(
            f"--set {key}: the value {text!r} is not YAML; quote it, or write a list as [1, 2]."
        ) from error
    _lay(content, key, value)


def _lay(content: dict[str, Any], key: str, value: Any) -> None:
    parts = key.strip().split(".")
    if not all(parts):
        raise RecipeError(f"--set {key!r} is not a key; write it like optimizer.lr.")
    node: Any = content
    for position, part in enumerate(parts):
        slot: Any = part
        if isinstance(node, list):
            slot = _index(node, part, key=".".join(parts[:position]))
        if position == len(parts) - 1:
            node[slot] = value
            return
        below = node[slot] if isinstance(node, list) else node.get(slot)
        # What is absent or a scalar becomes a mapping: data.normalize.mean replaces data.normalize: unit.
        node[slot] = below if isinstance(below, dict | list) else {}
        node = node[slot]


def dump(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `load` reads back to an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _find(recipe: str) -> Path:
    if recipe.endswith((".yaml", ".yml")) or "/" in recipe:
        path = Path(recipe)
        if not path.is_file():
            raise RecipeError(
                f"recipe file {recipe!r} does not exist; give a YAML file or one of {', '.join(names())}."
            )
        return path
    if recipe in names():
        return DIRECTORY / f"{recipe}.yaml"
    near = difflib.get_close_matches(recipe, names(), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(names())}, or the path of a YAML file."
    raise RecipeError(f"recipe '{recipe}' is not known; {hint}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe file '{path}' cannot be read ({error}); give a UTF-8 text file.") from error
    except (yaml.YAMLError, ValueError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise RecipeError(f"recipe file '{path}' is not valid YAML{line}: {problem}.") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe file '{path}' holds {type(content).__name__}, expected a mapping of keys to values.")
    return content


def _index(node: list[Any], part: str, *, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise RecipeError(
            f"--set {key}.{part}: {key} is a list of {len(node)}; give an index from 0 to {len(node) - 1}."
        )
    return int(part)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key written twice; PyYAML itself silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)
