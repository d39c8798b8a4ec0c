"""What all contenders of a contest get: the same images as arrays on disk, and a job that says the rest.

Without real data sets, images of the same shape and number are made up in the real ones' file format, so that every
contender, Stride's own reader too, does what it would do with real ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contracts import places
from contracts.recipe import Recipe
from services.training.data import load

FOLDERS: Final = {"mnist": "MNIST", "fashion": "FashionMNIST"}
SPLITS: Final = {"train": 60_000, "t10k": 10_000}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """A data set on disk."""

    folder: Path
    """{train,validation,test}-{images,labels}.npy: uint8 (n, height, width, channels) and int64 (n,)."""
    real: bool
    train: int
    """Images."""
    bytes: int
    """Of all images, as uint8."""
    classes: int
    fingerprint: str


def data_root(recipe: Recipe, scratch: Path) -> tuple[Path, bool]:
    """The directory that holds the recipe's data set, and whether it is real; made up in `scratch` where there is none.

    Nothing is downloaded: a benchmark that waits for a network measures something else.
    """
    name = recipe.data.dataset
    for root in (places.data(), places.home() / "data"):
        raw = root / FOLDERS[name] / "raw"
        if raw.is_dir() and any(raw.glob("train-images-idx3-ubyte*")):
            return root, True
    make_up(scratch / "data" / FOLDERS[name] / "raw")
    return scratch / "data", False


def make_up(raw: Path, *, counts: dict[str, int] | None = None) -> None:
    """Write idx files of 28x28 images: one noisy pattern a class, so that a fit has something to learn."""
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    patterns = random.integers(0, 160, (10, 28, 28), dtype=np.uint8)
    for split, count in (counts or SPLITS).items():
        labels = random.integers(0, 10, count, dtype=np.uint8)
        images = patterns[labels] + random.integers(0, 96, (count, 28, 28), dtype=np.uint8)
        _idx(raw / f"{split}-images-idx3-ubyte", images)
        _idx(raw / f"{split}-labels-idx1-ubyte", labels)


def prepare(recipe: Recipe, folder: Path, *, root: Path, real: bool) -> Inputs:
    """Read the recipe's data set from `root` and write its splits into `folder`."""
    dataset = load(recipe.data, root=root, cache=folder / "cache")
    folder.mkdir(parents=True, exist_ok=True)
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    for name, split in splits.items():
        np.save(folder / f"{name}-images.npy", split.images)
        np.save(folder / f"{name}-labels.npy", split.labels)
    return Inputs(
        folder=folder,
        real=real,
        train=len(dataset.train),
        bytes=sum(split.images.nbytes for split in splits.values()),
        classes=len(dataset.labels),
        fingerprint=dataset.fingerprint,
    )


def write_job(path: Path, recipe: Recipe, inputs: Inputs, *, threads: int, precision: str, scratch: Path) -> Path:
    """What one contender reads: the whole recipe and where things are."""
    job = {
        "recipe": recipe.model_dump(mode="json"),
        "data": str(inputs.folder),
        "classes": inputs.classes,
        "threads": threads,
        "precision": precision,
        "scratch": str(scratch),
    }
    path.write_text(json.dumps(job))
    return path


def _idx(path: Path, values: NDArray[np.uint8]) -> None:
    sizes = np.array(values.shape, dtype=">u4").tobytes()
    path.write_bytes(bytes((0, 0, 8, values.ndim)) + sizes + values.tobytes())
