"""The report of a fit: test metrics, figures, tables and the model card, under the same names in every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from contracts.errors import FitError
from contracts.recipe import Recipe
from services.training import curves, figures, model_card, scores

if TYPE_CHECKING:
    from services.training.data.dataset import Dataset
    from services.training.run import Run


def log_report(
    run: Run,
    *,
    recipe: Recipe,
    dataset: Dataset,
    history: Sequence[Mapping[str, float]],
    probabilities: NDArray[np.float32],
    facts: Mapping[str, str],
    uncalibrated: NDArray[np.float32] | None = None,
    temperature: float = 1.0,
) -> dict[str, float]:
    """Score the test split and log what a reader of the run wants to see.

    Metrics `test/*` (see `scores.score`; loss and calibration error before the temperature are `…_uncalibrated`);
    figures/learning_curves.png, confusion_matrix.png, mistakes.png, precision_recall_roc.png, reliability.png,
    samples.png and augmented.png; tables/per_class.json and confusion_matrix.json; model_card.md, which is also the
    note on the run's page. Learning curves, confusion matrix and reliability are image series of one step, too, which
    the compare view shows side by side.

    Args:
        run: Where it is logged.
        recipe: What was fitted.
        dataset: On what.
        history: The metrics of each epoch, from the first.
        probabilities: (n, classes), for `dataset.test.images`.
        facts: What the fit decided and came to (device, precision, epochs, …), in the order of the card; the card
            shows the key with blanks for underscores.
        uncalibrated: (n, classes), at temperature 1; `probabilities` where the network was not calibrated.
        temperature: That of `probabilities`.

    Returns:
        The test metrics.

    Raises:
        FitError: probabilities that are not finite, or not one row an image and one column a label.
        RegistryError: the tracking server does not take it.
    """
    from services.training import samples  # it needs torch, which a reader of scores and figures does not

    truth = dataset.test.labels
    expected = (len(truth), len(dataset.labels))
    if probabilities.shape != expected:
        raise FitError(
            f"recipe '{recipe.name}': probabilities of shape {probabilities.shape} for the test split, {expected} "
            "was expected; predict the whole split with the data set's own labels."
        )
    if not np.isfinite(probabilities).all():
        raise FitError(
            f"recipe '{recipe.name}': the network's answers on the test split are not finite, probabilities were "
            "expected; lower optimizer.lr or use fit.precision fp32."
        )
    before = probabilities if uncalibrated is None else uncalibrated
    results = scores.score(truth, probabilities)
    uncalibrated_scores = scores.score(truth, before)
    for key in ("test/loss", "test/calibration_error"):
        results[f"{key}_uncalibrated"] = uncalibrated_scores[key]
    table = scores.per_class(truth, probabilities, dataset.labels)
    matrix = scores.confusion(truth, probabilities)

    run.metrics(results)
    run.figure("figures/learning_curves.png", figures.learning_curves(history, recipe), key="learning-curves")
    run.figure("figures/confusion_matrix.png", figures.confusion_matrix(matrix, dataset.labels), key="confusion-matrix")
    run.figure("figures/mistakes.png", figures.mistakes(dataset.test.images, truth, probabilities, dataset.labels))
    run.figure("figures/precision_recall_roc.png", curves.precision_recall_roc(truth, probabilities, dataset.labels))
    run.figure(
        "figures/reliability.png", curves.reliability(truth, probabilities, before, temperature), key="reliability"
    )
    train = dataset.train
    run.figure("figures/samples.png", samples.samples(train.images, train.labels, dataset.labels))
    run.figure(
        "figures/augmented.png", samples.augmented(train.images, train.labels, dataset.labels, recipe.augmentation)
    )
    run.table("tables/per_class.json", table)
    columns = {"true class": list(dataset.labels)} | {
        f"predicted {label}": column for label, column in zip(dataset.labels, matrix.T.tolist(), strict=True)
    }
    run.table("tables/confusion_matrix.json", columns)
    card = model_card.render(run.run_id, recipe=recipe, dataset=dataset, results=results, per_class=table, facts=facts)
    run.file("model_card.md", card)
    run.note(card)
    return results
