"""Which version of a model is served: the champion, another alias, or one version for good.

STRIDE_MODELS=mnist@staging,fashion:3,digits serves what the alias `staging` of mnist names, version 3 of fashion, and
the champion of digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from contracts.errors import RecipeError
from contracts.registry import CHAMPION

# As MLflow has them; it keeps `latest` and `v1`, `v2`, ... for itself.
_ALIAS: Final = re.compile(r"(?!latest$|v\d+$)[a-z0-9_-]{1,255}", re.IGNORECASE)
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Pin:
    """What is followed: an alias, or a version where one is given."""

    alias: str = CHAMPION
    version: str | None = None

    def __str__(self) -> str:
        return f":{self.version}" if self.version else f"@{self.alias}"


def parse(text: str) -> dict[str, Pin]:
    """The value of STRIDE_MODELS: name -> pin, in the order given.

    Raises:
        RecipeError: one sentence that names what cannot be read.
    """
    found: dict[str, Pin] = {}
    for item in (part.strip() for part in text.split(",")):
        if not item:
            continue
        name, pin = _parse_one(item)
        if found.get(name, pin) != pin:
            both = f"{name}{found[name]} and {name}{pin}"
            raise RecipeError(f"STRIDE_MODELS names {both}; a model is served in one version, leave one out.")
        found[name] = pin
    return found


def _parse_one(item: str) -> tuple[str, Pin]:
    if ":" in item:  # no model's name holds one
        name, _, version = item.partition(":")
        if name and _VERSION.fullmatch(version):
            return name, Pin(version=version)
    elif "@" in item:
        name, _, alias = item.rpartition("@")
        if name and _ALIAS.fullmatch(alias):
            return name, Pin(alias)
    else:
        return item, Pin()
    forms = "NAME, NAME@ALIAS (letters, digits, - and _; not `latest` or `v1`) or NAME:VERSION (a number)"
    raise RecipeError(f"STRIDE_MODELS holds {item[:80]!r}; write {forms}.")
