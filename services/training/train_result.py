"""What a training run came to: the answer of `train`, kept in the run as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What a training run came to."""

    run_id: str
    recipe: str
    model_name: str
    recipe_hash: str
    test_accuracy: float
    test_loss: float
    validation_accuracy: float
    validation_loss: float
    best_epoch: int
    epochs: int
    images_per_second: float
    seconds: float
    """Of the fit, validation included, without loading and reporting."""
    device: str
    precision: str
    parameters: int
    trainable_parameters: int
    workers: int = 1
    """How many processes fitted together."""
    plan: str = ""
    """How the steps were computed, in one line."""
    resumed: int = 0
    """How often the fit went on from a checkpoint."""
    reused: bool = False
    """Whether a finished run of the same recipe, data and code was taken instead of fitting again."""
    tracked: bool = True
    """Whether MLflow has all of the run; otherwise it is kept on this machine, and `stride sync` sends it."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
