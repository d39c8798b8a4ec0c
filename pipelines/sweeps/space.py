"""What a sweep may vary: `optimizer.lr=loguniform(1e-4, 1e-1)`, one item a key of the recipe."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import yaml

from contracts.errors import RecipeError
from pipelines import recipe_files

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from contracts.recipe import Recipe

KINDS: Final = ("choice", "uniform", "loguniform", "randint", "lograndint")

# Trials that are judged on other images cannot be compared.
_JUDGES: Final = ("dataset", "path", "classes", "validation", "test", "split_seed", "on_bad_image")


@dataclass(frozen=True, kw_only=True, slots=True)
class Dimension:
    """The values of one key."""

    kind: str
    """One of KINDS."""
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    """Both ends belong to it, those of whole numbers too."""

    @property
    def log(self) -> bool:
        return self.kind.startswith("log")

    def distribution(self) -> BaseDistribution:
        """The same for Optuna, which knows choices by their JSON: it takes no lists."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.kind == "choice":
            return CategoricalDistribution([json.dumps(choice) for choice in self.choices])
        if self.kind.endswith("randint"):
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, drawn: Any) -> Any:
        """What the recipe gets for what Optuna has drawn; six digits say enough of a real number."""
        if self.kind == "choice":
            return json.loads(drawn)
        return drawn if isinstance(drawn, int) else min(max(float(f"{drawn:.6g}"), self.low), self.high)

    def probes(self) -> list[Any]:
        """Values that stand for all of them where a recipe is checked."""
        if self.kind == "choice":
            return list(self.choices)
        return [self.value(int(end) if self.kind.endswith("randint") else end) for end in (self.low, self.high)]

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"choice({', '.join(json.dumps(choice) for choice in self.choices)})"
        return f"{self.kind}({self.low:g}, {self.high:g})"


Space = Mapping[str, Dimension]


def parse(items: Sequence[str]) -> dict[str, Dimension]:
    """Read `KEY=KIND(…)` items.

    Raises:
        RecipeError: there is none, a key stands twice, or an item cannot be read; the sentence names it.
    """
    space: dict[str, Dimension] = {}
    for item in items:
        key, dimension = _item(item)
        if key in space:
            raise RecipeError(f"--space {key} is given twice; keep one of them.")
        space[key] = dimension
    if not space:
        raise RecipeError("--space is missing; say what varies, as in --space 'optimizer.lr=loguniform(1e-4, 1e-1)'.")
    return space


def overrides(values: Mapping[str, Any]) -> list[str]:
    """The values of a trial as `--set` items."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def check(space: Space, recipe: str, given: Sequence[str]) -> None:
    """Hold a space to the recipe that it varies, before anything is fitted.

    Args:
        space: What varies.
        recipe: A recipe's name or file.
        given: The `--set` items.

    Raises:
        RecipeError: a key or a value is not one of the recipe's, changes nothing that is fitted, or changes the images
            that trials are judged on.
    """
    base = recipe_files.load(recipe, given)
    for key, dimension in space.items():
        part, _, name = key.partition(".")
        if part == "data" and name.split(".")[0] in _JUDGES:
            raise RecipeError(f"--space {key}: trials are judged on the same images, which this changes; leave it out.")
        digests = {_with(recipe, given, {key: value}).digest() for value in dimension.probes()}
        if len(digests) < len(dimension.probes()) or (digests == {base.digest()}):
            raise RecipeError(
                f"--space {key}={dimension}: its values make no different fits; let a key of the fit vary."
            )


def with_values(recipe: str, given: Sequence[str], values: Mapping[str, Any]) -> Recipe:
    """The recipe of a trial.

    Raises:
        RecipeError: values that are good alone do not go together.
    """
    return _with(recipe, given, values)


def _with(recipe: str, given: Sequence[str], values: Mapping[str, Any]) -> Recipe:
    return recipe_files.load(recipe, [*given, *overrides(values)])


def _item(item: str) -> tuple[str, Dimension]:
    found = re.fullmatch(r"\s*([^=\s]+)\s*=\s*(\w+)\s*\((.*)\)\s*", item, re.DOTALL)
    if found is None:
        raise RecipeError(
            f"--space {item!r} is not KEY=KIND(…); write it like optimizer.lr=loguniform(1e-4, 1e-1) or "
            "fit.batch_size=choice(32, 64)."
        )
    key, kind, text = found.groups()
    if kind not in KINDS:
        raise RecipeError(f"--space {key}: {kind!r} is not known; use one of {', '.join(KINDS)}.")
    try:
        arguments = [_number(value) for value in yaml.safe_load(f"[{text}]")]
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"--space {key}: ({text}) is no list of values; write it like {kind}(1, 2).") from error
    if kind == "choice":
        if len({json.dumps(value) for value in arguments}) < max(2, len(arguments)):
            raise RecipeError(f"--space {key}: choice({text}) needs two different values or more, each of them once.")
        return key, Dimension(kind=kind, choices=tuple(arguments))
    return key, _range(key, kind, text, arguments)


def _range(key: str, kind: str, text: str, arguments: list[Any]) -> Dimension:
    whole = kind.endswith("randint")
    numbers = [value for value in arguments if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(arguments) != 2 or len(numbers) != 2 or not all(map(math.isfinite, numbers)) or numbers[0] >= numbers[1]:
        raise RecipeError(f"--space {key}: {kind}({text}) needs two numbers, the lower one first.")
    if kind.startswith("log") and numbers[0] <= 0:
        raise RecipeError(f"--space {key}: {kind}({text}) begins at {numbers[0]:g}; a logarithm needs more than 0.")
    if whole and any(value != int(value) for value in numbers):
        raise RecipeError(f"--space {key}: {kind}({text}) needs whole numbers; for others use {kind[:-7]}uniform.")
    return Dimension(kind=kind, low=float(numbers[0]), high=float(numbers[1]))


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
