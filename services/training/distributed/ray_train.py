"""A fit by the workers of a Ray cluster, with Ray Train: for more GPUs than one machine has.

The machines need the same code, the data that the recipe names, and one STRIDE_HOME, whose checkpoints the first worker
writes wherever it runs. A lost worker ends the others, and all start again and go on from the last checkpoint.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from contracts import places
from contracts.errors import FitError, RecipeError
from contracts.recipe import Recipe
from services.training.distributed.start import answer, taken
from services.training.distributed.workers import too_many
from services.training.ray_cluster import connected
from services.training.stopping import Stopping
from services.training.train_result import TrainResult

RESTARTS: Final = 3
"""How often a group is started again."""
_PASSED_ON: Final = ("STRIDE_", "MLFLOW_", "GLOO_", "NCCL_")

_log = logging.getLogger(__name__)


def launch(
    recipe: Recipe,
    *,
    workers: int,
    address: str,
    force: bool = False,
    progress: bool | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainResult:
    """Fit a recipe with so many workers of a Ray cluster; see `train` for the rest, and for what it raises.

    Raises:
        DeviceError: the cluster does not answer.
        RecipeError: it has fewer GPUs, or processors, than workers.
        FitError: workers were lost, and starting them again did not help.
        Terminated, KeyboardInterrupt: SIGTERM or Ctrl-C; the fit goes on from its last checkpoint next time.
    """
    with Stopping(), connected(address, otherwise="workers of this machine") as there:
        gpus = _on_gpus(workers, int(there.get("GPU", 0)))
        cpus = int(there.get("CPU", 0)) // workers
        if cpus < 1:
            raise RecipeError(
                f"--workers is {workers}, but the Ray cluster at {address} has {there.get('CPU', 0):g} processors and "
                "each worker takes one; give fewer workers."
            )
        content = {
            "recipe": recipe.model_dump(mode="json"),
            "force": force,
            "progress": progress,
            "tags": dict(tags or {}),
            "environment": _environment(gpus=gpus),
        }
        for restarts in range(RESTARTS + 1):
            given, problem = _fit({**content, "restarts": restarts}, workers, cpus=cpus, gpus=gpus)
            if given is not None:
                return taken(given)
            if restarts < RESTARTS:
                number = f"restart {restarts + 1} of {RESTARTS}"
                _log.warning("%s: all %d go on from the last checkpoint (%s)", problem, workers, number)
    raise FitError(
        f"recipe '{recipe.name}': {problem}, and starting all {workers} again {RESTARTS} times did not help; look for "
        "what ends it, and run this again, which goes on from the last checkpoint."
    )


def _fit(content: dict[str, Any], workers: int, *, cpus: int, gpus: bool) -> tuple[dict[str, Any] | None, str]:
    """The first worker's answer, or which worker was lost."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import WorkerGroupError

    trainer = TorchTrainer(
        cast("Callable[[dict[Any, Any]], None]", _work),  # typed for an older Ray, which gave no answer back
        train_loop_config=content,
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": cpus}),
        run_config=RunConfig(storage_path=str(places.home() / "ray")),
    )
    try:
        result: Any = trainer.fit()
    except WorkerGroupError as error:
        rank, reason = next(iter(sorted(error.worker_failures.items())), (0, error))
        lines = str(reason).strip().splitlines() or [type(reason).__name__]
        return None, f"worker {rank} is lost ({lines[-1].rstrip('.')[:200]})"
    return result.return_value, "a worker is lost"


def _work(content: dict[str, Any]) -> Any:
    """What Ray Train calls in each worker, in a thread; it gives the first one's answer to `fit`."""
    os.environ.update(content["environment"])
    try:
        return answer(content)
    except SystemExit as ended:  # it would end the thread, and Ray would wait for it
        if ended.code:
            raise RuntimeError(str(ended)) from ended
        return None


def _on_gpus(workers: int, gpus: int) -> bool:
    wanted = os.environ.get("STRIDE_DEVICE") or "auto"
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return False
    if workers > gpus:
        raise RecipeError(too_many(workers, gpus))
    return True


def _environment(*, gpus: bool) -> dict[str, str]:
    """The machine that a worker runs on may know nothing of this one's environment."""
    given = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    there = {
        "STRIDE_HOME": str(places.home()),
        "STRIDE_DATA": str(places.data()),
        "MLFLOW_TRACKING_URI": places.tracking_uri(),
        "STRIDE_DEVICE": "cuda" if gpus else "cpu",
    }
    return {**given, **there}
