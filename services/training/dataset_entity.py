"""A data set as MLflow records it: what it is and how much of it, not the images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from contracts.recipe import Recipe

if TYPE_CHECKING:
    import mlflow.entities

    from services.training.data.dataset import Dataset

_DIGEST: Final = 36
"""Characters that MLflow takes of a digest."""


def dataset_entity(dataset: Dataset, recipe: Recipe) -> mlflow.entities.Dataset:
    """Name, digest, source, counts of each split, labels, and the shape of one batch of images and labels."""
    from mlflow.entities import Dataset as Entity

    counts = {name: len(getattr(dataset, name).labels) for name in ("train", "validation", "test")}
    shape = [-1, *recipe.data.image.shape]
    profile = {"num_rows": sum(counts.values()), **counts, "classes": len(dataset.labels), "labels": dataset.labels}
    tensors = {
        "features": [_tensor("images", "uint8", shape)],
        "targets": [_tensor("labels", "int64", [-1])],
    }
    if recipe.data.path is not None:
        kind, source = "local", json.dumps({"uri": str(Path(recipe.data.path).absolute())})
    else:
        kind, source = "code", json.dumps({"tags": {"mlflow.source.name": "stride", "dataset": recipe.data.dataset}})
    return Entity(
        name=dataset.name,
        digest=re.sub(r"^sha256:", "", dataset.fingerprint)[:_DIGEST],
        source_type=kind,
        source=source,
        # MLflow's own form: JSON inside JSON.
        schema=json.dumps({"mlflow_tensorspec": {key: json.dumps(value) for key, value in tensors.items()}}),
        profile=json.dumps(profile),
    )


def _tensor(name: str, dtype: str, shape: list[int]) -> dict[str, Any]:
    return {"type": "tensor", "name": name, "tensor-spec": {"dtype": dtype, "shape": shape}}
