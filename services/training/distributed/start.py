"""One worker of a fit: it takes its place in the group and does its part.

    python -m services.training.distributed.start REQUEST.json     a process that `launch` starts

Its answer, or why there is none, goes to answer-RANK.json beside the request.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch.distributed as dist

from contracts.errors import FitError, StrideError
from contracts.recipe import Recipe, parse
from services.training.device import choose_device
from services.training.distributed.follow import follow
from services.training.distributed.place import Place
from services.training.distributed.workers import Workers, join
from services.training.train import train
from services.training.train_result import TrainResult

_HEARD_S: Final = 90.0
"""How long a worker that cannot go on waits for the first one to close its run, before it leaves by itself."""


def work(
    recipe: Recipe,
    place: Place,
    *,
    force: bool = False,
    progress: bool | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainResult | None:
    """Do a worker's part of a fit; the first worker's result is the fit's, and the others have none.

    Args:
        recipe: What to fit; the first worker's counts.
        place: In the group.
        force: As `train` takes it.
        progress: Likewise.
        tags: Likewise.

    Raises:
        StrideError: as `train`; by a worker that is not the first, only where that one does not hear of it.
        WorkerLost: another worker is gone; started again, the group goes on from its last checkpoint.
    """
    if place.rank:
        _be_quiet()
    group = join(place, choose_device()[0])
    try:
        if group.first:
            result = train(recipe, force=force, progress=progress, tags=tags, group=group)
        else:
            result = None
            follow(group)
    except StrideError as error:
        if not group.first and _told(group, error):
            raise SystemExit(0) from error
        raise
    finally:
        group.leave()
        if dist.is_initialized():
            dist.destroy_process_group()  # whoever still waits for this worker is told by it that it is gone
    return result


def answer(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Do what a request asks of this worker: the fit's result, or the error that has ended it, or nothing.

    Args:
        content: `recipe` and what `work` takes.

    Raises:
        WorkerLost: see `work`.
    """
    place = Place.from_environment()
    if place is None:
        raise FitError("this is a worker of a fit, and its environment names no RANK; start `stride train --workers`.")
    recipe = parse(content["recipe"], name=content["recipe"]["name"])
    place = replace(place, restarts=content.get("restarts", place.restarts))
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is the answer of whoever asked for the fit
            result = work(recipe, place, force=content["force"], progress=content["progress"], tags=content["tags"])
    except StrideError as error:
        return {"error": {"kind": type(error).__name__, "message": error.message}}
    except Exception as error:
        if os.environ.get("STRIDE_DEBUG", "0") not in ("", "0"):
            raise
        reason = " ".join(str(error).split())[:500]
        message = f"worker {place.rank}: unexpected {type(error).__name__}: {reason}; STRIDE_DEBUG=1 shows where."
        return {"error": {"kind": "FitError", "message": message}}
    return {"result": result.to_json()} if result is not None else None


def taken(content: Mapping[str, Any]) -> TrainResult:
    """The result in an answer.

    Raises:
        StrideError: the one that the worker has met, of its own kind.
    """
    if "error" not in content:
        return TrainResult(**content["result"])
    kinds: list[type[StrideError]] = [StrideError]
    for kind in kinds:  # it grows: all that derive from it
        kinds += kind.__subclasses__()
    found = next((kind for kind in kinds if kind.__name__ == content["error"]["kind"]), FitError)
    raise found(content["error"]["message"])


def main() -> None:
    """The process that `launch` starts."""
    request = Path(sys.argv[1])
    given = answer(json.loads(request.read_text()))
    if given is not None:
        rank = os.environ["RANK"]
        staged = request.with_name(f".answer-{rank}")
        staged.write_text(json.dumps(given))
        staged.replace(request.with_name(f"answer-{rank}.json"))
    sys.exit(given is not None and "error" in given)


def _told(group: Workers, error: StrideError) -> bool:
    """Whether the first worker has heard of a problem, or met it, too, and has ended with it."""
    if group.signs is None:
        return False
    group.signs.tell_problem(group.rank, error.message)
    dist.destroy_process_group()  # the first one's next call fails, and it looks for the reason
    return group.signs.wait_until_over(_HEARD_S)


def _be_quiet() -> None:
    """What the first worker says is said once."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    main()
