"""What a job of the training service comes to: the command that one would type, its share of a machine, variables."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from contracts.errors import RequestError
from pipelines import recipe_files
from services.training.jobs.job import RECIPE_FILE, Share, Work
from services.training.jobs.request import JobRequest
from services.training.jobs.settings import Settings

_PASSED_ON: Final = ("STRIDE_DEVICE", "STRIDE_TRACKING_WAIT", "CUDA_VISIBLE_DEVICES")


def resolve(request: JobRequest) -> Work:
    """The work that a request comes to.

    Raises:
        RecipeError: the recipe is not known or not valid, in the sentence of the command line.
    """
    recipe = recipe_files.resolve(request.recipe, request.set)
    document = recipe_files.dump(recipe)
    options = ["--json", *(["--force"] if request.force else [])]
    if request.kind == "sweep":
        items = [f"{key}={values}" for key, values in request.space.items()]
        _check_space(items, document)
        options += [f"--trials={request.trials}", *(f"--space={item}" for item in items)]
    return Work(
        recipe=recipe.name,
        model_name=recipe.model_name,
        document=document,
        command=(sys.executable, "-m", "pipelines.cli", request.kind, RECIPE_FILE, *options),
    )


def _check_space(items: list[str], document: str) -> None:
    """Raise RecipeError where a key or its values cannot be tried."""
    from pipelines.sweeps import space  # Optuna comes with it

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(document)
        file.flush()
        space.check(space.parse(items), file.name, ())


def share_of(request: JobRequest, usual: Share, *, available: int | None) -> Share:
    """The part of a machine for a job; `available` GPUs, None where a cluster knows.

    Raises:
        RequestError: more GPUs than there are.
    """
    if request.kind == "sweep":  # its trials take shares of their own, the one that watches them needs none
        return Share()
    gpus = usual.gpus if request.gpus is None else request.gpus
    if available is not None and gpus > available:
        raise RequestError(f"gpus is {gpus:g}; this machine has {available}, ask for at most that many.")
    return Share(cpus=usual.cpus, gpus=gpus)


def job_environment(settings: Settings) -> dict[str, str]:
    """The variables that a job gets, wherever it runs; paths are absolute, and the cluster's nodes share them."""
    environment = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)  # Ray says which of them are the job's
    environment["STRIDE_HOME"] = str(settings.home)
    environment["MLFLOW_TRACKING_URI"] = settings.tracking_uri
    if data := os.environ.get("STRIDE_DATA"):
        environment["STRIDE_DATA"] = str(Path(data).absolute())
    return environment
