"""A good recipe as it is written, and what is changed in it."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import recipe
from contracts.errors import RecipeError

Content = dict[str, Any]


def good_content() -> Content:
    return {
        "data": {"dataset": "digits", "image": {"height": 28, "width": 28, "channels": 1}},
        "model": {"kind": "convnet", "blocks": [{"filters": 8}], "head": {"units": [16]}},
    }


def with_key(path: str, value: object) -> Content:
    """The good recipe with one key set; numbers in the path are places in a list."""
    content = good_content()
    *parents, last = path.split(".")
    part: Any = content
    for name in parents:
        part = part[int(name)] if name.isdigit() else part.setdefault(name, {})
    part[last] = value
    return content


def refusal_of(content: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe.parse(content, name="mine")
    assert "\n" not in caught.value.message
    return caught.value.message


def backbone_content(**parts: Any) -> Content:
    return good_content() | {"model": {"kind": "backbone", "name": "vgg16", **parts}}
