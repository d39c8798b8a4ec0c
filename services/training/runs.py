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
from typing import TYPE_CHECKING, Any, Final, Literal

from contracts.errors import RegistryError, StrideError
from contracts.recipe import Recipe, parse

if TYPE_CHECKING:
    import mlflow.entities
    from torch import Tensor

    from services.training.networks import ServedGraph
    from services.training.run import Run

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


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredNetwork:
    """What a finished run left of its network: network.json and weights.safetensors."""

    run: mlflow.entities.Run
    state: dict[str, Tensor]
    """On the CPU, by the names of the network's state dict."""
    labels: tuple[str, ...]
    output: Literal["softmax", "sigmoid"]
    mean: tuple[float, ...]
    """Per channel, on the scale 0-1."""
    std: tuple[float, ...]
    temperature: float


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
        RegistryError: see `read_network`.
    """
    import torch

    from services.training.networks import ServedGraph, build

    stored = read_network(run_id, instead="train its recipe again")
    content = _json(run_id, RECIPE, read_artifacts(run_id, (RECIPE,)))
    recipe = parse(content, name=content["name"])
    # The initial values are overwritten at once; the caller's random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        network = build(recipe.model, image=recipe.data.image, classes=len(stored.labels))
    network.load_state_dict(stored.state)
    graph = ServedGraph(network, output=stored.output, mean=stored.mean, std=stored.std, temperature=stored.temperature)
    tags: dict[str, str] = stored.run.data.tags
    return TrainedRun(
        run_id=run_id,
        recipe=recipe,
        labels=stored.labels,
        graph=graph.eval(),
        data_fingerprint=tags.get("stride.data_fingerprint", ""),
        test_fingerprint=tags.get("stride.test_fingerprint", ""),
        code_version=tags.get("stride.code_version", ""),
        metrics=dict(stored.run.data.metrics),
    )


def read_network(run_id: str, *, instead: str) -> StoredNetwork:
    """What a finished run left of its network.

    Args:
        run_id: Of the run.
        instead: What to do where it is not finished, as the error says it.

    Raises:
        RegistryError: the tracking server is away, there is no such run, it is not finished, or an artifact is missing
            or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    from services.training.tracking import get_run

    run = get_run(run_id)
    if run.info.status != "FINISHED":
        raise RegistryError(f"run {run_id} is {run.info.status}, not FINISHED; {instead}.")
    files = read_artifacts(run_id, (NETWORK, WEIGHTS))
    description = _json(run_id, NETWORK, files)
    try:
        state = from_bytes(files[WEIGHTS])
    except SafetensorError as error:
        raise _unreadable(run_id, WEIGHTS, error) from error
    return StoredNetwork(
        run=run,
        state=state,
        labels=tuple(description["labels"]),
        output=description["output"],
        mean=tuple(description["mean"]),
        std=tuple(description["std"]),
        temperature=description.get("temperature", 1.0),  # runs from before it was fitted have none
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
                raise _unreadable(run_id, name, error) from error
    return found


def read_result(run_id: str) -> dict[str, Any] | None:
    """The result of a finished run, or None where it cannot be read any more (its artifacts were deleted)."""
    try:
        content = json.loads(read_artifacts(run_id, (RESULT, WEIGHTS))[RESULT])
    except (StrideError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _json(run_id: str, name: str, files: dict[str, bytes]) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(files[name])
    except ValueError as error:
        raise _unreadable(run_id, name, error) from error
    return content


def _unreadable(run_id: str, name: str, error: Exception) -> RegistryError:
    return RegistryError(f"run {run_id}: its artifact {name} cannot be read ({_line(error)}); train its recipe again.")


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
