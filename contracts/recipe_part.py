"""What every part of a recipe is: frozen, keyword-only, without unknown keys; and the kinds of values they share."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(coerce_numbers_to_str=True)]
"""Classes and directories are often called 0, 1, 2024, which YAML reads as numbers."""
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Part(BaseModel):
    """A part of a recipe, or the whole of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation names, in its order: `"none" | Weights` names one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]
