"""One training run, whole: data, network, plan, fit, evaluation, report, weights; all of it in one MLflow run."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contracts import places
from contracts.errors import DataError
from contracts.recipe import Normalize, Recipe
from services.training import runs, weights
from services.training.augment import augment
from services.training.calibration import calibrate, predict_both
from services.training.code_version import code_version
from services.training.data import load
from services.training.data.dataset import Dataset, Split
from services.training.device import Plan, choose_device, choose_plan, steps_per_second
from services.training.evaluate import to_device
from services.training.fit import fit, training_step
from services.training.image_series import ImageSeries
from services.training.networks import ServedGraph, build, count_parameters
from services.training.optimizers import make_optimizer, parameter_groups
from services.training.progress import Progress
from services.training.report import log_report
from services.training.tracking import find_finished, open_run


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
    reused: bool = False
    """Whether a finished run of the same recipe, data and code was taken instead of fitting again."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def train(recipe: Recipe, *, force: bool = False, progress: bool | None = None) -> TrainResult:
    """Fit a recipe and log it, or take the finished run of the same recipe, data and code.

    Args:
        recipe: What to fit.
        force: Fit even where such a run is finished.
        progress: False shows nothing; see `services.training.progress`.

    Raises:
        DataError, RecipeError, DeviceError: before anything is fitted or logged.
        FitError: the fit cannot go on; the run is kept as failed.
        RegistryError: the tracking server is away.
    """
    choose_device()  # a device that is asked for and not there is told before the data are read
    recipe = pin(recipe)
    dataset = load(recipe.data)
    if not force and (reused := _finished(recipe, dataset)) is not None:
        return reused
    # Weights, dropout and order come from the recipe's seed, and the caller's generators stay as they were.
    with torch.random.fork_rng():
        torch.manual_seed(recipe.fit.seed)
        graph = make_graph(recipe, dataset)
        plan = _plan(graph, dataset, recipe)
        torch.manual_seed(recipe.fit.seed)  # the same dropout whether the plan was measured just now or remembered
        with plan.using_threads():
            return _fit_and_log(recipe, dataset, graph, plan, progress)


def estimate(recipe: Recipe) -> float:
    """Seconds that the training steps of a recipe's epochs would take here, from a few timed ones.

    Early stopping makes it less, validation more. Raises as `train` does before anything is fitted.
    """
    recipe = pin(recipe)
    dataset = load(recipe.data)
    with torch.random.fork_rng():
        graph = make_graph(recipe, dataset)
        plan = _plan(graph, dataset, recipe)
        with plan.using_threads():
            rate = steps_per_second(_trial(graph, dataset.train, recipe)(plan), plan.device, seconds=0.5)
    return math.ceil(len(dataset.train) / recipe.fit.batch_size) * recipe.fit.epochs / rate


def pin(recipe: Recipe) -> Recipe:
    """The recipe as its run keeps it: what its names mean here and now, so that they mean the same for its export.

    A model's champion may be another one tomorrow, and a relative path lead elsewhere from another directory. Two
    recipes that name one folder in two ways are one recipe from here on.

    Raises:
        DataError, RegistryError: see `weights.pin`; DataError also for a path of no such user, or of links in a circle.
    """
    recipe = weights.pin(recipe)
    if recipe.data.path is None:
        return recipe
    try:
        path = Path(recipe.data.path).expanduser().resolve()
    except RuntimeError as error:
        raise DataError(
            f"data.path {recipe.data.path!r} leads nowhere ({error}); give the path of a directory."
        ) from error
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"path": str(path)})})


def make_graph(recipe: Recipe, dataset: Dataset) -> ServedGraph:
    """The recipe's network for a data set, on the CPU, with its initial weights and its normalisation.

    Raises:
        RecipeError: see `build` and `parameter_groups`.
        DataError: the initial weights are missing or of another network.
        RegistryError: they are in the tracking server, which is away or does not hold them.
    """
    network = build(recipe.model, image=recipe.data.image, classes=len(dataset.labels))
    parameter_groups(recipe.optimizer, network)  # a layer that is not there is told before anything is opened
    own = weights.load(network, recipe, labels=dataset.labels)
    mean, std = normalization(recipe.data.normalize, dataset.train.images, own=own)
    return ServedGraph(network, output=recipe.output, mean=mean, std=std)


def normalization(
    how: str | Normalize, images: NDArray[np.uint8], *, own: Normalize | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation per channel, on the scale 0-1, that `data.normalize` means for images (n, h, w, c).

    `own` is what the initial weights were fitted with, None where they are random.
    """
    channels = images.shape[3]
    if how == "auto" and own is not None:
        how = own
    if isinstance(how, Normalize):
        return how.mean, how.std
    if how in ("auto", "unit"):
        return (0.0,) * channels, (1.0,) * channels
    values = np.arange(256) / 255
    mean, std = [], []
    for channel in range(channels):  # a histogram gives both exactly, without a float copy of the images
        share = np.bincount(images[..., channel].reshape(-1), minlength=256) / images[..., channel].size
        mean.append(float(share @ values))
        std.append(float(np.sqrt(share @ (values - mean[-1]) ** 2)) or 1.0)
    return tuple(mean), tuple(std)


def _fit_and_log(
    recipe: Recipe, dataset: Dataset, graph: ServedGraph, plan: Plan, progress: bool | None
) -> TrainResult:
    counts = count_parameters(graph.network)
    tags = {
        "stride.data_fingerprint": dataset.fingerprint,
        "stride.test_fingerprint": dataset.test_fingerprint,
        "stride.code_version": code_version(),
        **{f"stride.{key}": value for key, value in plan.facts().items()},
    }
    with open_run(recipe, tags=tags) as run:
        run.dataset(dataset)
        with ImageSeries(run, dataset.validation) as series, closing(Progress(show=progress)) as shown:
            series.log(0, graph)  # before anything is learned; MLflow's slider begins here
            result = fit(
                graph,
                dataset.train,
                dataset.validation,
                recipe,
                plan,
                log=run,
                progress=shown,
                watch=series.watch,
            )
            series.log(result.best_epoch, graph)  # the weights that were kept
        calibration = calibrate(graph, dataset.validation)
        graph.to("cpu").to(memory_format=torch.contiguous_format)
        runs.save(run, recipe=recipe, labels=dataset.labels, graph=graph)
        facts = {
            **plan.facts(),
            "parameters": f"{counts.total:,} ({counts.trainable:,} trainable)",
            "epochs": f"{len(result.history)}, the best was {result.best_epoch}; {result.stopped}",
            "seconds": f"{result.seconds:.1f}",
            "images_per_second": f"{result.images_per_second:,.0f}",
            "temperature": str(calibration),
        }
        probabilities, uncalibrated = predict_both(graph, dataset.test.images)
        report = log_report(
            run,
            recipe=recipe,
            dataset=dataset,
            history=result.history,
            probabilities=probabilities,
            facts=facts,
            uncalibrated=uncalibrated,
            temperature=calibration.temperature,
        )
        run.metrics(
            {
                "best/epoch": result.best_epoch,
                "best/validation_accuracy": result.best["validation/accuracy"],
                "best/validation_loss": result.best["validation/loss"],
                "fit/seconds": result.seconds,
                "fit/images_per_second": result.images_per_second,
                "calibration/temperature": calibration.temperature,
                "network/parameters": counts.total,
                "network/trainable_parameters": counts.trainable,
            }
        )
        answer = TrainResult(
            run_id=run.run_id,
            recipe=recipe.name,
            model_name=recipe.model_name,
            recipe_hash=recipe.digest(),
            test_accuracy=report["test/accuracy"],
            test_loss=report["test/loss"],
            validation_accuracy=result.best["validation/accuracy"],
            validation_loss=result.best["validation/loss"],
            best_epoch=result.best_epoch,
            epochs=len(result.history),
            images_per_second=round(result.images_per_second, 1),
            seconds=round(result.seconds, 2),
            device=plan.device,
            precision=plan.precision,
            parameters=counts.total,
            trainable_parameters=counts.trainable,
        )
        run.file(runs.RESULT, json.dumps(answer.to_json(), indent=2))
    return answer


def _finished(recipe: Recipe, dataset: Dataset) -> TrainResult | None:
    run_id = find_finished(recipe, data_fingerprint=dataset.fingerprint, code_version=code_version())
    content = runs.read_result(run_id) if run_id else None
    return TrainResult(**{**content, "reused": True}) if content else None


def _plan(graph: ServedGraph, dataset: Dataset, recipe: Recipe) -> Plan:
    return choose_plan(
        recipe.fit.precision,
        trial=_trial(graph, dataset.train, recipe),
        key=f"{recipe.digest()}|{dataset.train.images.shape[1:]}|{len(dataset.labels)}",
        cache=places.home() / "cache",
    )


def _trial(graph: ServedGraph, train: Split, recipe: Recipe) -> Callable[[Plan], Callable[[], None]]:
    size = recipe.fit.batch_size

    def prepare(plan: Plan) -> Callable[[], None]:
        copied = copy.deepcopy(graph).to(plan.device).to(memory_format=plan.memory_format).train()
        optimizer = make_optimizer(recipe.optimizer, copied.network)
        scaler = torch.amp.GradScaler(plan.device, enabled=False)
        images = to_device(train.images[:size], plan.device)
        labels = to_device(train.labels[:size], plan.device)
        randomness = torch.Generator(device=plan.device).manual_seed(0)

        def step() -> None:
            batch = augment(images, recipe.augmentation, randomness) if recipe.augmentation.any else images
            training_step(copied, batch, labels, recipe, plan, optimizer, scaler)

        return step

    return prepare
