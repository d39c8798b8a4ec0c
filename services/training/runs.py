"""A finished run's artifacts: what training leaves for export, and how it is read again.

recipe.json            the resolved recipe
network.json           labels, normalisation, output, temperature
weights.safetensors    the network's weights (no pickle)
result.json            the TrainResult
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contracts.errors import RegistryError, StrideError
from contracts.recipe import Recipe, parse

if TYPE_CHECKING:
    from services.training.networks import ServedGraph
    from services.training.tracking import Run

RECIPE: Final = "recipe.json"
NETWORK: Final = "network.json"
WEIGHTS: Final = "weights.safetensors"
RESULT: Final = "result.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedRun:
    """A finished run with its network."""

    run_id: str
    recipe: Recipe
    labels: tuple[str, ...]
    graph: ServedGraph
    """In eval mode, fp32, on the CPU."""
    data_fingerprint: str
    test_fingerprint: str
    code_version: str
    metrics: dict[str, float]


def save(run: Run, *, recipe: Recipe, labels: tuple[str, ...], graph: ServedGraph) -> None:
    """Write recipe, network and weights of a fitted graph into a run."""
    from safetensors.torch import save as to_bytes

    mean, std = (graph.mean / 255).flatten().tolist(), (1 / (255 * graph.scale)).flatten().tolist()
    network = {
        "labels": labels,
        "output": graph.output,
        "mean": mean,
        "std": std,
        "temperature": float(graph.temperature),
    }
    weights = {name: value.detach().cpu().contiguous() for name, value in graph.network.state_dict().items()}
    run.file(RECIPE, recipe.model_dump_json(indent=2))
    run.file(NETWORK, json.dumps(network, indent=2))
    run.file(WEIGHTS, to_bytes(weights))


def load_run(run_id: str) -> TrainedRun:
    """Rebuild the network of a finished run.

    Raises:
        RegistryError: the tracking server is away, there is no such run, it is not finished, or an artifact is missing.
    """
    import torch
    from safetensors.torch import load as from_bytes

    from services.training.networks import ServedGraph, build
    from services.training.tracking import get_run

    found = get_run(run_id)
    if found.info.status != "FINISHED":
        raise RegistryError(f"run {run_id} is {found.info.status}, not FINISHED; train its recipe again.")
    files = read_artifacts(run_id, (RECIPE, NETWORK, WEIGHTS))
    content = json.loads(files[RECIPE])
    recipe = parse(content, name=content["name"])
    description = json.loads(files[NETWORK])
    labels = tuple(description["labels"])
    # The initial values are overwritten at once; the caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        network = build(recipe.model, image=recipe.data.image, classes=len(labels))
    network.load_state_dict(from_bytes(files[WEIGHTS]))
    graph = ServedGraph(
        network,
        output=description["output"],
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
        temperature=description.get("temperature", 1.0),  # runs from before it was fitted have none
    )
    tags: dict[str, str] = found.data.tags
    return TrainedRun(
        run_id=run_id,
        recipe=recipe,
        labels=labels,
        graph=graph.eval(),
        data_fingerprint=tags.get("stride.data_fingerprint", ""),
        test_fingerprint=tags.get("stride.test_fingerprint", ""),
        code_version=tags.get("stride.code_version", ""),
        metrics=dict(found.data.metrics),
    )


def read_artifacts(run_id: str, names: tuple[str, ...]) -> dict[str, bytes]:
    """The bytes of artifacts of a run.

    Raises:
        RegistryError: one of them is missing or cannot be fetched.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from services.training.tracking import tracking_uri

    found: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name in names:
            try:
                path = mlflow.artifacts.download_artifacts(
                    run_id=run_id, artifact_path=name, dst_path=directory, tracking_uri=tracking_uri()
                )
                found[name] = Path(path).read_bytes()
            except (MlflowException, OSError) as error:
                raise RegistryError(
                    f"run {run_id}: its artifact {name} cannot be read ({_line(error)}); train its recipe again."
                ) from error
    return found


def read_result(run_id: str) -> dict[str, Any] | None:
    """The result of a finished run, or None where it cannot be read any more (its artifacts were deleted)."""
    try:
        content = json.loads(read_artifacts(run_id, (RESULT, WEIGHTS))[RESULT])
    except (StrideError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
