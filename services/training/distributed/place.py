"""A process' place among the workers of a fit, as torchrun and Ray Train tell it by the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from contracts.errors import RecipeError


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a worker stands, and where its group meets."""

    rank: int
    size: int
    local_rank: int
    """Among the workers of its machine; the GPU that it takes."""
    address: str
    port: int
    restarts: int
    hosted: bool
    """Whether somebody else holds the store at that address; otherwise the first worker does."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self | None:
        """The place that the environment names; None where this process fits alone.

        Raises:
            RecipeError: it names half of a place.
        """
        environment = os.environ if environment is None else environment
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return None
        place = cls(
            rank=_number(environment, "RANK"),
            size=_number(environment, "WORLD_SIZE"),
            local_rank=_number(environment, "LOCAL_RANK", environment["RANK"]),
            address=environment.get("MASTER_ADDR", ""),
            port=_number(environment, "MASTER_PORT", "0"),
            restarts=_number(environment, "TORCHELASTIC_RESTART_COUNT", "0"),
            hosted=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        )
        if place.size == 1:
            return None
        if place.rank >= place.size:
            raise RecipeError(f"RANK is {place.rank} of WORLD_SIZE {place.size}; start the workers with torchrun.")
        if not place.address or not place.port:
            raise RecipeError("RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT; start with torchrun.")
        return place


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    if not text.isdecimal():
        raise RecipeError(f"{name} is {text!r}, a whole number was expected; start the workers with torchrun.")
    return int(text)
