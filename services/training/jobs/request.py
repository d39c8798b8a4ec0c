"""The body of `POST /v1/jobs`: checked key by key before a recipe is looked for."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from contracts.errors import MalformedBody, RequestError
from contracts.recipe_errors import explain
from services.training.jobs.job import Kind, wrong_gpus

_DEPTH: Final = 32
"""How deep a body may be nested; a recipe needs 6."""


class JobRequest(BaseModel):
    """What to run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    kind: Kind
    """train: fit a recipe. ship: fit, export, prove, pass the gate, promote. sweep: look for better settings."""
    recipe: str | dict[str, Any]
    """A recipe's name, or a whole recipe."""
    set: dict[str, Any] = {}
    """Keys of the recipe with other values, as `stride train --set` takes them: {"fit.epochs": 3}."""
    force: bool = False
    """train, ship: fit again even where the same run is finished."""
    gpus: Annotated[float, Field(ge=0, le=64)] | None = None
    """train, ship: GPUs that are this job's alone while it runs; below 1 a share of one, 0.05 at least. By default
    what the service is set to."""
    trials: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """sweep: how many settings are tried."""
    space: dict[str, str] = {}
    """sweep: what is tried of which key, as `stride sweep --space` takes it."""

    @field_validator("recipe", mode="before")
    @classmethod
    def _a_name_or_a_recipe(cls, value: Any) -> Any:
        if not isinstance(value, str | dict):
            raise ValueError(f"recipe is {value!r:.80}; give a recipe's name, or a whole recipe as an object")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpus is not None and (wrong := wrong_gpus(self.gpus)) is not None:
            raise ValueError(f"gpus is {self.gpus:g}; {wrong}")
        if self.kind == "sweep":
            if self.trials is None or not self.space:
                raise ValueError("a sweep needs trials and space; add how many settings are tried, and of which keys")
            if self.force or self.gpus is not None:
                raise ValueError("force and gpus are not for a sweep; leave them out")
        elif self.trials is not None or self.space:
            raise ValueError(f"trials and space are for a sweep; leave them out, or set kind {self.kind!r} to 'sweep'")
        return self

    def digest(self) -> str:
        """sha256 of the request, the same for two bodies that mean the same."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def parse(body: bytes) -> JobRequest:
    """Read a body.

    Raises:
        MalformedBody: it is not JSON, or nested too deep.
        RequestError: one sentence with the key, its value and what was expected.
    """
    try:
        content = json.loads(body, parse_constant=_no_constant, object_pairs_hook=_no_twice)
    except RecursionError as error:
        raise MalformedBody(f"the body is nested more than {_DEPTH} deep; send a flatter one.") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError and ours
        raise MalformedBody(f"the body is not valid JSON ({error}); send one JSON object.") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise RequestError(f"the body holds {kind}, expected an object with the keys 'kind' and 'recipe'.")
    if _deeper(content, _DEPTH):
        raise MalformedBody(f"the body is nested more than {_DEPTH} deep; send a flatter one.")
    try:
        return JobRequest.model_validate(content)
    except ValidationError as error:
        raise RequestError(f"job: {explain(error, JobRequest)}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON value")


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key '{key:.80}' stands twice")
        found[key] = value
    return found


def _deeper(value: Any, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_deeper(child, levels - 1) for child in children)
