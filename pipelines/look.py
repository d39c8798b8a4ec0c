"""`stride look`: what the served network, or that of any run, sees in one's own image.

Written are activations-STAGE.png for each convolutional stage, grad-cam.png (the image, Grad-CAM of the predicted
class, the most probable classes) and filters.png of the first layer.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contracts import images as image_contract
from contracts import places
from contracts.errors import DataError, RegistryError
from contracts.registry import PROMOTED_AT
from pipelines import registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.tracking import MlflowClient

    from services.training.inside import Inside

TOP: Final = 5
_SIDE: Final = 320
"""Of the image and its Grad-CAM in grad-cam.png, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a network made of an image, and the files that show it."""

    image: str
    run_id: str
    model: str
    version: str | None
    """None where a run was looked at, not a registered version."""
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    """Labels with their probabilities, the most probable first."""
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "top": [{"label": label, "probability": value} for label, value in self.top]}


def look(
    path: Path, *, model: str | None = None, run_id: str | None = None, output: Path | None = None, top_k: int = TOP
) -> Look:
    """Run one image through a network and write what happens inside.

    Args:
        path: An image file of a format that is served.
        model: The registered model whose champion looks; without it and `run_id` the one that the service answers
            with: STRIDE_MODEL, else the model whose champion moved last.
        run_id: A finished run to look with instead.
        output: The directory for the files; `$STRIDE_HOME/look/<name of the image>` without it.
        top_k: Most classes that are told.

    Raises:
        DataError: the image cannot be read.
        ImageError: it cannot be decoded.
        RegistryError: no such model, champion or finished run, or the tracking server is away.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"image {str(path)!r} cannot be read ({error.strerror}); give an image file.") from error
    version = None
    if run_id is None:
        found = _champion(registry.connect(), model)
        run_id, version = found.run_id, found.version
    from services.training.inside import first_filters, look_inside
    from services.training.mosaic import channels, filters
    from services.training.runs import load_run

    run = load_run(run_id)
    image = image_contract.decode(content, run.recipe.data.image)
    inside = look_inside(run.graph, image[np.newaxis])
    order = np.argsort(-inside.probabilities[0], kind="stable")[: max(top_k, 1)]
    top = tuple((run.labels[index], float(inside.probabilities[0, index])) for index in order)
    from services.training.drawing import to_png

    pictures = {
        **{f"activations-{_name(stage)}.png": channels(maps[0]) for stage, maps in inside.activations.items()},
        "filters.png": filters(first_filters(run.graph.network), side=72),
    }
    files = {name: image_contract.encode_png(picture) for name, picture in pictures.items()}
    files = {"grad-cam.png": to_png(_explained(image, inside, top)), **files}
    directory = output or places.home() / "look" / path.stem
    written = _write(directory, files)
    return Look(
        image=str(path),
        run_id=run_id,
        model=run.recipe.model_name,
        version=version,
        label=top[0][0],
        probability=top[0][1],
        top=top,
        files=written,
    )


def _champion(client: MlflowClient, model: str | None) -> registry.Version:
    name = model or os.environ.get("STRIDE_MODEL") or _last_promoted(client)
    if name is None:
        raise RegistryError("no model has been promoted yet, a champion to look with was expected; run `stride ship`.")
    if (found := registry.champion(client, name)) is None:
        raise RegistryError(f"model '{name}' has no champion; run `stride ship`, or give a run with --run.")
    return found


def _last_promoted(client: MlflowClient) -> str | None:
    """The model whose champion moved last, as inference chooses it."""
    with registry.registry_errors("to look for a champion"):
        models = list(client.search_registered_models())
    moved = [(int(model.tags[PROMOTED_AT]), model.name) for model in models if PROMOTED_AT in model.tags]
    return max(moved)[1] if moved else None


def _explained(image: NDArray[np.uint8], inside: Inside, top: tuple[tuple[str, float], ...]) -> Figure:
    """The image, its Grad-CAM and the most probable classes, side by side."""
    from services.training.drawing import BLUE, INK, new_figure, percent, short
    from services.training.mosaic import overlay, tile

    figure = new_figure(11, 4)
    left, middle, right = figure.subplots(1, 3)
    explained = f"What speaks for {short(top[0][0])} (Grad-CAM)"
    shown = (
        (left, tile(image, _SIDE), "As the network takes it"),
        (middle, overlay(image, inside.cam[0], _SIDE), explained),
    )
    for axes, picture, title in shown:
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(title, color=INK, fontsize=11, loc="left")
    places_of = np.arange(len(top))
    right.barh(places_of, [value for _, value in top], color=BLUE)
    right.set_yticks(places_of, [short(label) for label, _ in top])
    for place, (_, value) in enumerate(top):
        right.text(value + 0.02, place, percent(value), va="center", fontsize=10, color=INK)
    right.set(xlim=(0, 1.18), xticks=(0, 0.5, 1))
    right.invert_yaxis()
    right.set_title("Probability", color=INK, fontsize=11, loc="left")
    right.spines[["top", "right"]].set_visible(False)
    right.tick_params(colors=INK)
    return figure


def _write(directory: Path, files: dict[str, bytes]) -> tuple[str, ...]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name).write_bytes(content)
    except OSError as error:
        raise DataError(
            f"directory {str(directory)!r} cannot be written ({error.strerror}); give another one with --output."
        ) from error
    return tuple(str(directory / name) for name in files)


def _name(stage: str) -> str:
    return stage.replace(".", "-")
