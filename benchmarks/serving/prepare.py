"""python -m benchmarks.serving.prepare DIRECTORY

What all servers are asked with and about, made once: a short fit of the recipe `fashion`, exported and tuned as `ship`
does it, 200 of its test images, and five versions of it in the registry of STRIDE_HOME, as fp32 and as tuned. Writes
DIRECTORY/images.npy, DIRECTORY/model.json and the bundles. Minutes where it is new, seconds where nothing changed.

How right the answers are does not matter here, what they cost does: the network is the recipe's, its weights are those
of one epoch, and int8 is taken though it loses more than the recipe's gate would let through. Without Fashion-MNIST the
images are the embedded digits, in the recipe's size.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from contracts import bundle as bundles
from contracts import places, registry
from contracts.bundle import MODEL, Bundle
from contracts.recipe import Recipe
from pipelines import processes, recipe_files
from services.training import data

if TYPE_CHECKING:
    from services.training.data.dataset import Dataset

IMAGES: Final = 200
VERSIONS: Final = 5
"""More than a service keeps on disk, so that a swap to the next one in turn always fetches it."""
NAMES: Final = {"fp32": "fashion-fp32", "int8": "fashion-tuned"}
_SHORT: Final = ("fit.epochs=1", "data.limit=6000", "model.norm_momentum=0.1", "tune.max_loss=0.1")
"""The normalisation follows the images of 47 steps; the recipe's momentum is for fifty epochs."""
_DIGITS: Final = ("data.dataset=digits", "data.validation=0.4", "data.limit=800")
"""575 validation images: the tuner judges nothing by fewer than 500."""


def main(directory: Path) -> None:
    recipe, dataset = recipe_and_data()
    key = hashlib.sha256(f"{recipe.digest()} {dataset.fingerprint} {_sources()}".encode()).hexdigest()
    written = directory / "model.json"
    if written.exists() and json.loads(written.read_text())["key"] == key:
        return
    directory.mkdir(parents=True, exist_ok=True)
    content = make(recipe, dataset, directory)
    np.save(directory / "images.npy", dataset.test.images[:IMAGES])
    written.write_text(json.dumps({"key": key, **content}, indent=2))


def recipe_and_data() -> tuple[Recipe, Dataset]:
    """The recipe, shortened, on Fashion-MNIST where it is at hand; nothing is downloaded."""
    here = (places.data() / "FashionMNIST" / "raw").is_dir()
    recipe = recipe_files.load("fashion", _SHORT if here else (*_SHORT, *_DIGITS))
    return recipe, data.load(recipe.data)


def make(recipe: Recipe, dataset: Dataset, directory: Path) -> dict[str, Any]:
    """Fit, export, tune and register; what the benchmark has to know of it."""
    from pipelines.export import export
    from pipelines.tune import tune
    from services.training.train import train

    fitted = train(recipe, progress=False)
    plain = export(fitted.run_id, dataset=dataset)
    tuning = tune(fitted.run_id, limits=recipe.tune, dataset=dataset)
    serving = tuning.serving
    chosen = {"fp32": _variant(plain, "fp32", directory, tuned=False)}
    if serving.precision == "int8":
        chosen["int8"] = _variant(tuning.bundle, "int8", directory, tuned=True)
    return {
        "data": dataset.name,
        "recipe": recipe.name,
        "parameters": fitted.parameters,
        "test_accuracy": fitted.test_accuracy,
        "labels": list(plain.manifest.labels),
        "tuning": serving.reason,
        "models": {
            precision: {
                "name": NAMES[precision],
                "graph": str(found[0].path / found[0].manifest.served_file),
                "optimization": found[0].manifest.serving.session.optimization if found[0].manifest.serving else "all",
                "versions": [publish(bundle, NAMES[precision]) for bundle in found],
            }
            for precision, found in chosen.items()
        },
    }


def _variant(source: Bundle, precision: str, directory: Path, *, tuned: bool) -> list[Bundle]:
    """`VERSIONS` bundles of one graph that say in every answer which of them it is from: by their labels."""
    manifest = source.manifest
    kept = (MODEL, *(golden.file for golden in manifest.golden), *([manifest.served_file] if tuned else []))
    files = {name: source.read(name) for name in kept}
    made = []
    for number in range(1, VERSIONS + 1):
        changed: dict[str, Any] = {
            "name": NAMES[precision],
            "labels": tuple(f"{label} v{number}" for label in manifest.labels),
            "serving": manifest.serving if tuned else None,
        }
        path = directory / "bundles" / f"{precision}-{number}"
        made.append(bundles.write(path, manifest.model_copy(update=changed), files))
    return made


def publish(bundle: Bundle, name: str) -> str:
    """Make a version of the bundle, as a service looks for it; its number. The last one published is the champion."""
    from mlflow.exceptions import MlflowException

    from pipelines.registry import connect
    from services.training import tracking

    client = connect()
    # MLflow's own experiment would keep its files in the current directory.
    run = client.create_run(tracking.experiment_id(client, places.tracking_uri(), "benchmark")).info
    client.log_artifacts(run.run_id, str(bundle.path), registry.BUNDLE_ARTIFACT)
    client.set_terminated(run.run_id)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    uri = f"runs:/{run.run_id}/{registry.BUNDLE_ARTIFACT}"
    tags = {registry.BUNDLE_URI: uri, registry.BUNDLE_DIGEST: bundle.digest}
    version = client.create_model_version(name, run.artifact_uri, run_id=run.run_id, tags=tags)
    client.set_registered_model_alias(name, registry.CHAMPION, version.version)
    return str(version.version)


def _sources() -> str:
    """What decides the graph and its bundle."""
    digest = hashlib.sha256()
    for pattern in ("contracts/*.py", "services/training/**/*.py", "pipelines/*.py", "benchmarks/serving/prepare.py"):
        for path in sorted(processes.ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
