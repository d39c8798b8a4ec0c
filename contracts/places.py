"""Where things are: the environment says it, and nothing else does.

| variable | meaning | default |
|---|---|---|
| STRIDE_HOME | everything that Stride writes: data base, artifacts, caches, logs | .stride |
| STRIDE_DATA | data sets in torchvision's layout (may be read-only) | $STRIDE_HOME/data |
| STRIDE_DEVICE | auto, cpu or cuda | auto |
| MLFLOW_TRACKING_URI | the tracking server | sqlite:///$STRIDE_HOME/mlflow.db |
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The directory that Stride writes to, absolute."""
    return Path(os.environ.get("STRIDE_HOME") or ".stride").absolute()


def data() -> Path:
    """The directory that holds the data sets, absolute; it may be read-only."""
    given = os.environ.get("STRIDE_DATA")
    return Path(given).absolute() if given else home() / "data"


def tracking_uri() -> str:
    """MLflow's address, or the embedded SQLite data base."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
