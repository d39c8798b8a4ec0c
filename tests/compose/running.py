"""What the tests ask of a running stack: predictions, the champion, and what must outlive its containers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.compose.stack import Stack

Image = tuple[bytes, str]
LONG_RUNNING = {"postgres", "tracking", "training", "inference"}
ONE_SHOTS = {"secrets", "migrate", "ship"}


@dataclass(frozen=True)
class Restarted:
    """A stack after `down` and `up`, and what it held before."""

    stack: Stack
    before: tuple[Any, ...]


def predict(stack: Stack, images: list[Image], *, path: str = "/v1/predict") -> list[tuple[str, str]]:
    """(model version, label) of each image, asked from outside."""
    answers = [
        json.loads(stack.ask("inference", path, image, {"Content-Type": "image/png"}).body) for image, _ in images
    ]
    return [(answer["model"]["version"], answer["predictions"][0]["label"]) for answer in answers]


def right(images: list[Image], found: list[tuple[str, str]]) -> float:
    """The share of the images whose label was said."""
    return sum(label == said for (_, label), (_, said) in zip(images, found, strict=True)) / len(images)


def champion(stack: Stack, model: str = "digits") -> dict[str, Any]:
    path = f"/api/2.0/mlflow/registered-models/alias?name={model}&alias=champion"
    version: dict[str, Any] = stack.get("tracking", path)["model_version"]
    return version


def bundle(stack: Stack) -> bytes:
    """A file of the champion's run, as MLflow hands it out."""
    run = champion(stack)["run_id"]
    return stack.ask("tracking", f"/get-artifact?path=bundle/bundle.json&run_uuid={run}").body


def held(stack: Stack, images: list[Image]) -> tuple[Any, ...]:
    """Champion, runs, artifacts and answers."""
    return champion(stack), runs(stack), bundle(stack), [label for _, label in predict(stack, images)]


def runs(stack: Stack) -> list[dict[str, Any]]:
    """Every run that MLflow holds, through its API."""
    experiments = stack.get("tracking", "/api/2.0/mlflow/experiments/search?max_results=100")
    body = {"experiment_ids": [each["experiment_id"] for each in experiments["experiments"]], "max_results": 500}
    answer = stack.ask("tracking", "/api/2.0/mlflow/runs/search", json.dumps(body).encode())
    found: list[dict[str, Any]] = json.loads(answer.body).get("runs", [])
    for run in found:  # the data base gives them in any order
        run["data"] = {name: sorted(items, key=str) for name, items in run["data"].items()}
    return sorted(found, key=lambda run: str(run["info"]["run_id"]))
