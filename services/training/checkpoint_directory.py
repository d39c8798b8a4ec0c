"""Which directory a fit keeps its checkpoints in, and that one process alone uses it."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch

from contracts import places
from contracts.errors import AlreadyFitting, RecipeError
from services.training import checkpoint_lock
from services.training.checkpoints import Checkpoints
from services.training.code_version import code_version
from services.training.stopping import Stopping

if TYPE_CHECKING:
    from contracts.recipe import Recipe
    from services.training.data.dataset import Dataset

_ABANDONED_S: Final = 30 * 24 * 3600
"""After this long nobody goes on from a checkpoint: every changed recipe would leave one on the disk for ever."""

_log = logging.getLogger(__name__)


def identity_of(recipe: Recipe, dataset: Dataset, device: str, tags: Mapping[str, str] | None = None) -> str:
    """sha256 of all that decides a fit: a checkpoint goes on under the same one, and under no other.

    torch's version, because its generators and its optimizers' state may change with it; the device, because the
    generators of a GPU are others than the CPU's; the tags that its run was given, because the trials of a sweep may
    be alike.
    """
    decides = [recipe.digest(), recipe.model_name, dataset.fingerprint, code_version(), torch.__version__, device]
    return hashlib.sha256(json.dumps([*decides, *sorted((tags or {}).items())]).encode()).hexdigest()


@contextmanager
def open_checkpoints(name: str, identity: str, *, stopping: Stopping | None = None) -> Iterator[Checkpoints]:
    """The checkpoints of a fit, for this process alone; where they cannot be written there is a warning, and no lock.

    Args:
        name: The recipe's.
        identity: See `identity_of`.
        stopping: See `Checkpoints`.

    Raises:
        AlreadyFitting: another process has them open.
        RecipeError: see `seconds_between`.
    """
    every_s = seconds_between()
    directory = _directory(identity)
    lock: AbstractContextManager[object]
    try:
        lock = checkpoint_lock.take(directory)
    except checkpoint_lock.Held as held:
        raise AlreadyFitting(
            f"recipe '{name}': process {held.holder} is fitting the same recipe, data and code; wait for it, or end it "
            "and run this again, which goes on from its last checkpoint."
        ) from held
    except OSError as error:
        _log.warning("%s cannot be written (%s); a fit that is killed starts anew", directory, error.strerror)
        lock = nullcontext()
    _remove_abandoned()
    with lock, Checkpoints(directory, identity, every_s=every_s, stopping=stopping) as kept:
        yield kept


def discard_checkpoints(identity: str) -> None:
    """Remove what a fit left that was finished and then killed before it could; not while another process is at it."""
    _discard(_directory(identity))


def seconds_between() -> float:
    """What STRIDE_CHECKPOINT_SECONDS says, 60 without it.

    Raises:
        RecipeError: it is no number above 0.
    """
    given = os.environ.get("STRIDE_CHECKPOINT_SECONDS") or "60"
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise RecipeError(f"STRIDE_CHECKPOINT_SECONDS is {given!r}; set it to seconds above 0, such as 60.")
    return seconds


def _root() -> Path:
    return places.home() / "checkpoints"


def _directory(identity: str) -> Path:
    return _root() / identity[:32]


def _remove_abandoned() -> None:
    for directory in _root().glob("*/"):
        with suppress(OSError):
            if time.time() - directory.stat().st_mtime > _ABANDONED_S:  # each checkpoint renews it
                _discard(directory)


def _discard(directory: Path) -> None:
    if directory.is_dir():
        with suppress(OSError, checkpoint_lock.Held), checkpoint_lock.take(directory):
            shutil.rmtree(directory)
