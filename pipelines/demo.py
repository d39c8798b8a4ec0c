"""`make demo`: fit three digits networks, compare them, promote the best, serve it, and ask it over HTTP.

    python -m pipelines.demo

About a minute on two cores, test accuracy 0.97 to 0.99 on 359 images; a second call takes what is finished. Both
servers are left running: inference at 127.0.0.1:3000, MLflow at 127.0.0.1:5000. `make stop` ends them.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx

from contracts import images as image_contract
from contracts import places
from pipelines import predict as client
from pipelines import recipe_files, serving
from pipelines.cli.console import answer, say, table, working
from pipelines.cli.main import guard
from pipelines.processes import ServerError

if TYPE_CHECKING:
    from pipelines.processes import Record
    from pipelines.ship import ShipResult

RECIPES: Final = ("digits", "digits-wide", "digits-batchnorm")
SWAP_S: Final = 60.0
"""How long a service that runs already may take to answer with the new champion."""


def demo() -> None:
    """Run the whole way once and print what came of it.

    Raises:
        StrideError: a stage failed, or the service did not answer with the champion in time.
    """
    started = time.perf_counter()
    result = _ship()
    with working():
        say("starting MLflow and inference")
        records = serving.start()
    inference = records[-1].url
    path, label = _example_image()
    found = _ask(inference, path, version=str(result.version), log=records[-1].log)
    (prediction,) = found["predictions"]
    probability = f"{prediction['probability']:.4f}"
    answer(
        f"\n{path.name} shows {label}; model {_who(found)} says {prediction['label']} with probability {probability}"
    )
    if prediction["label"] != label:
        raise ServerError(f"the service answered {prediction['label']!r} for {path}, expected {label!r}; see its log.")
    _hints(records, path)
    say(f"done in {time.perf_counter() - started:.0f} s")


def _ship() -> ShipResult:
    from pipelines.ship import ship

    with working():
        result = ship([recipe_files.load(name) for name in RECIPES], say=say)
    if result.version is None:  # where an earlier run is the champion, it stays, is served, and the demo goes on
        raise ServerError(f"the gate refused the best run ({'; '.join(result.reasons)}); see `stride history digits`.")
    header = ("recipe", "parameters", "validation accuracy", "test accuracy", "test loss", "images/s", "seconds", "")
    rows = [
        (
            run["recipe"],
            run["parameters"],
            run["validation_accuracy"],
            run["test_accuracy"],
            run["test_loss"],
            round(run["images_per_second"]),
            f"{run['seconds']:.1f}",
            "champion" if run["run_id"] == result.run_id and result.verdict != "refused" else "",
        )
        for run in result.runs
    ]
    answer(table(rows, header))
    what = "the best run was refused, the champion stays" if result.verdict == "refused" else result.verdict
    answer(f"\nserved as {result.model} version {result.version}: {what}")
    for reason in result.reasons:
        answer(f"  {reason}")
    return result


def _example_image() -> tuple[Path, str]:
    """Write the first test image as a PNG file; also its label."""
    from services.training.data import load

    dataset = load(recipe_files.load(RECIPES[0]).data)
    label = dataset.labels[int(dataset.test.labels[0])]
    path = places.home() / "demo" / f"digit-{label}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_contract.encode_png(dataset.test.images[0]))
    return path, label


def _ask(url: str, path: Path, *, version: str, log: str) -> dict[str, Any]:
    """Predict; a service that is still loading, or still swapping to `version`, is waited for."""
    images = client.read([path])
    deadline = time.monotonic() + SWAP_S
    while True:
        if _ready(url):
            found = client.predict(images, url=url, model="digits", top_k=3)
            if str(found["model"]["version"]) == version:
                return found
        if time.monotonic() > deadline:
            raise ServerError(f"{url} did not serve digits version {version} within {SWAP_S:.0f} s; its log is {log}.")
        time.sleep(0.2)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _who(found: dict[str, Any]) -> str:
    model = found["model"]
    return f"{model['name']} version {model['version']} on {model.get('provider', 'onnxruntime')}"


def _hints(records: list[Record], path: Path) -> None:
    inference = records[-1].url
    tracking = records[0].url if len(records) > 1 else places.tracking_uri()
    answer(f"\n  inference  {inference}        its page: drop an image on it")
    answer(f"  MLflow     {tracking}        experiment digits: choose all runs, then Compare\n")
    answer("Try next:")
    answer(f"  curl -F image=@{path} {inference}/v1/models/digits/predict")
    answer("  .venv/bin/stride recipes")
    answer(
        "  .venv/bin/stride ship folder --set data.path=DIR --set model_name=NAME   (DIR holds one directory a class)"
    )
    answer("  make stop")


if __name__ == "__main__":
    sys.exit(guard(demo))
