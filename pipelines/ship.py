"""The whole way in one call: train -> compare -> export -> prove -> tune -> gate -> register -> promote.

Every stage can fail or refuse without touching the champion, and an error names the stage that it comes from. What is
done already is not done again: a finished run is reused, a run is exported and tuned once, a champion stays what it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from contracts.errors import RecipeError, StrideError
from contracts.recipe import Recipe
from pipelines import registry
from pipelines.export import Say, export, silent
from pipelines.promotion import submit
from pipelines.refusal import Refused
from pipelines.tune import tune

if TYPE_CHECKING:
    from services.training.train_result import TrainResult


@dataclass(frozen=True, kw_only=True, slots=True)
class ShipResult:
    """What came of it."""

    verdict: Literal["accepted", "refused", "unchanged"]
    """`unchanged`: the best run is the champion already."""
    reasons: tuple[str, ...]
    model: str
    version: str | None
    """The champion now; None where a first candidate was refused."""
    former: str | None
    """The champion before."""
    run_id: str
    """Of the best run, which was judged."""
    test_accuracy: float
    """Of the best run, as served."""
    runs: tuple[dict[str, Any], ...]
    """Every run's TrainResult, in the order of the recipes."""

    @property
    def exit_code(self) -> int:
        return Refused.exit_code if self.verdict == "refused" else 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ship(
    recipes: Recipe | Sequence[Recipe],
    *,
    force: bool = False,
    allow_new_labels: bool = False,
    tuned: bool = True,
    progress: bool | None = None,
    say: Say = silent,
) -> ShipResult:
    """Train recipes of one model; promote the run with the best validation accuracy (then loss) if the gate lets it.

    Args:
        recipes: One, or several that share `model_name`.
        force: Train even where a finished run of the same identity can be reused.
        allow_new_labels: Let labels through that are not the champion's.
        tuned: Look for a faster graph to serve, as the recipe's `tune` says, where the run has not been tuned.
        progress: As `services.training.train.train` takes it.
        say: Gets a line for each stage.

    Returns:
        The result; a refusal by the gate is one (`verdict` and `exit_code` say so), not an error.

    Raises:
        RecipeError: no recipe, or recipes of different models.
        StrideError: what a stage raises, its name in front of the message; the champion is as it was.
    """
    recipes = (recipes,) if isinstance(recipes, Recipe) else tuple(recipes)
    model = _one_model(recipes)
    from services.training.train import train

    results: list[TrainResult] = []
    for number, recipe in enumerate(recipes, start=1):
        say(f"training {recipe.name} ({number} of {len(recipes)})")
        with stage(f"train {recipe.name}"):
            result = train(recipe, force=force, progress=progress)
        say(_trained(result))
        results.append(result)
    best = min(range(len(results)), key=lambda index: _rank(results[index]))
    run = results[best]
    compared = _compared(results, run)
    if len(results) > 1:
        say(compared)
    with stage(f"export run {run.run_id}"):
        bundle = export(run.run_id, say=say)
    if tuned and bundle.manifest.serving is None and not registry.versions_of_run(registry.connect(), run.run_id):
        with stage(f"tune run {run.run_id}"):
            bundle = tune(run.run_id, limits=recipes[best].tune, say=say).bundle
    figures: dict[str, Any] = {
        "model": model,
        "run_id": run.run_id,
        "test_accuracy": bundle.manifest.metrics["test/accuracy"],
        "runs": tuple(result.to_json() for result in results),
    }
    first = (compared,) if len(results) > 1 else ()
    try:
        with stage(f"promote run {run.run_id}"):
            promotion = submit(
                bundle, run.run_id, thresholds=recipes[best].gate, allow_new_labels=allow_new_labels, say=say
            )
    except Refused as refused:
        say(refused.message)
        reasons = (*first, *refused.verdict.reasons)
        champion = refused.champion
        return ShipResult(verdict="refused", reasons=reasons, version=champion, former=champion, **figures)
    verdict: Literal["accepted", "unchanged"] = "unchanged" if promotion.action == "unchanged" else "accepted"
    reasons = (*first, *promotion.reasons)
    return ShipResult(verdict=verdict, reasons=reasons, version=promotion.version, former=promotion.former, **figures)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Puts the stage's name in front of the message of a StrideError."""
    try:
        yield
    except Refused:  # a verdict, not a failure
        raise
    except StrideError as error:
        error.message = f"{name}: {error.message}"
        error.args = (error.message,)
        raise


def _one_model(recipes: Sequence[Recipe]) -> str:
    models = sorted({recipe.model_name for recipe in recipes})
    if len(models) != 1:
        found = f"recipes of {len(models)} models ({', '.join(models)})" if models else "no recipe"
        raise RecipeError(f"ship: {found}, expected recipes of one model; set the same model_name in them.")
    return models[0]


def _rank(result: TrainResult) -> tuple[float, float]:
    """Smaller is better: validation accuracy, and among equals (few images make many) the validation loss."""
    return -result.validation_accuracy, result.validation_loss


def _trained(result: TrainResult) -> str:
    how = "reused" if result.reused else f"{result.epochs} epochs in {result.seconds:.1f} s on {result.device}"
    return (
        f"run {result.run_id} ({how}): validation accuracy {result.validation_accuracy:.4f}, "
        f"test accuracy {result.test_accuracy:.4f}"
    )


def _compared(results: Sequence[TrainResult], best: TrainResult) -> str:
    ranking = sorted(results, key=_rank)
    figures = ", ".join(f"{result.recipe} {result.validation_accuracy:.4f}" for result in ranking)
    return f"{best.recipe} is the best of {len(results)} by validation accuracy: {figures}"
