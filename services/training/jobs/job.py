"""A job: what was asked for, how far it is, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

Kind = Literal["train", "ship", "sweep"]
State = Literal["queued", "running", "succeeded", "refused", "failed", "cancelled"]
STATES: Final[tuple[State, ...]] = get_args(State)
ENDED: Final[frozenset[State]] = frozenset({"succeeded", "refused", "failed", "cancelled"})
LEAST_GPU: Final = 0.05
"""The least share of a GPU: each process holds about half a gigabyte of it before its first tensor."""
RECIPE_FILE: Final = "@recipe"
"""Stands in a command for the path of the file that the recipe is written to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a request comes to, once its recipe is found and valid."""

    recipe: str
    """Its name."""
    model_name: str
    document: str
    """The whole recipe as YAML, overrides and defaults included."""
    command: tuple[str, ...]
    """The process to run, argument by argument; its standard output is one JSON document."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """The part of a machine that is a job's alone while it runs."""

    cpus: float = 0.0
    gpus: float = 0.0


def wrong_gpus(gpus: float) -> str | None:
    """What is wrong with a number of GPUs, as a clause; None where a job can have them."""
    if gpus > 1 and gpus != int(gpus):
        return "above 1 give a whole number"
    if 0 < gpus < LEAST_GPU:
        return f"give 0 for none, or at least {LEAST_GPU:g}, a twentieth of one"
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job as the store has it."""

    id: str
    sequence: int
    """Jobs are begun in this order."""
    kind: Kind
    work: Work
    share: Share
    request: dict[str, Any]
    """As it came in."""
    state: State = "queued"
    created: float
    """This and the other times in seconds since the epoch."""
    started: float | None = None
    ended: float | None = None
    attempt: int = 0
    """How often it was handed to Ray."""
    submission: str | None = None
    """Ray's name of the attempt that is under way."""
    losses: int = 0
    """How many attempts ended without a word: killed, out of memory, a lost node."""
    cancelling: bool = False
    error: str | None = None
    result: dict[str, Any] | None = None
    """What the command answered."""
    runs: tuple[str, ...] = field(default=())
    """The MLflow runs that it opened, in that order."""
