"""The UCI digits inside scikit-learn: 1,797 grayscale images of 8x8, the data set that needs no file and no network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from contracts.errors import DataError
from services.training.data.dataset import Source, Split

LABELS = tuple("0123456789")


def read() -> Source:
    """All 1,797 digits, 8x8x1, their values 0-16 scaled to 0-255; there is no official test split.

    Raises:
        DataError: scikit-learn is not installed, or without its data.
    """
    # The file itself, without sklearn.datasets.load_digits: importing that brings scipy along and costs seconds.
    spec = importlib.util.find_spec("sklearn")
    places = spec.submodule_search_locations if spec is not None else None
    path = Path(*(places or ["sklearn"])[:1]) / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    except (OSError, ValueError) as error:
        raise DataError(f"data set 'digits': {path} cannot be read ({error}); install scikit-learn again.") from error
    images = np.rint(table[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return Source(name="digits", labels=LABELS, train=Split(images=images, labels=table[:, 64].astype(np.int64)))
