"""One training run, whole: data, network, plan, fit, evaluation, report, weights; all of it in one MLflow run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from contracts import places
from contracts.errors import DataError, Diverged
from contracts.recipe import Normalize, Recipe
from services.training import runs, weights
from services.training.batches import batch_bounds
from services.training.calibration import calibrate, predict_both
from services.training.checkpoint_directory import discard_checkpoints, identity_of, open_checkpoints
from services.training.checkpoint_file import Snapshot
from services.training.checkpoints import Checkpoints
from services.training.code_version import code_version
from services.training.data import load
from services.training.data.dataset import Dataset
from services.training.device import Plan, choose_device
from services.training.features import may_be_held
from services.training.fit import fit
from services.training.fit_run import abandon, open_fit_run
from services.training.image_series import ImageSeries
from services.training.listening import Enough, Listener, Told
from services.training.memory import naming_the_batch_size
from services.training.networks import ServedGraph, build, count_parameters
from services.training.optimizers import parameter_groups
from services.training.progress import Progress
from services.training.report import log_report
from services.training.speed import choose_plan, steps_per_second
from services.training.stopping import Stopping
from services.training.tracking import find_finished
from services.training.trial import make_trial

_log = logging.getLogger(__name__)


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


def train(
    recipe: Recipe,
    *,
    force: bool = False,
    progress: bool | None = None,
    tags: Mapping[str, str] | None = None,
    listener: Listener | None = None,
) -> TrainResult:
    """Fit a recipe and log it, or take the finished run of the same recipe, data and code.

    A fit that was killed, stopped or cut off goes on from its last checkpoint, in its own run.

    Args:
        recipe: What to fit.
        force: Fit even where such a run is finished, and from the beginning where one is not.
        progress: False shows nothing; see `services.training.progress`.
        tags: Of the run; where there are any, only a run with the same ones is taken or gone on with.
        listener: Hears of every epoch; where it raises `Enough`, the fit is over.

    Raises:
        DataError, RecipeError, DeviceError, AlreadyFitting: before anything is fitted or logged.
        FitError: the fit cannot go on; the run is kept as failed.
        RegistryError: the tracking server is away.
        Terminated, KeyboardInterrupt: SIGTERM or Ctrl-C; the run is kept as killed, and goes on next time.
        Enough: the listener has raised it; the run is kept as killed, and does not go on.
    """
    tags = tags or {}
    device, _, _ = choose_device()  # one that is asked for and not there is told before the data are read
    recipe = pin(recipe)
    with Stopping() as stopping:
        dataset = load(recipe.data)
        identity = identity_of(recipe, dataset, device, tags)
        if not force and (reused := _finished(recipe, dataset, tags)) is not None:
            discard_checkpoints(identity)
            return reused
        with open_checkpoints(recipe.name, identity, stopping=stopping) as kept:
            # Once more: the process that fitted the same may have been done in between
            if not force and (reused := _finished(recipe, dataset, tags)) is not None:
                kept.finish()
                return reused
            if force:
                abandon(kept)
                kept.clear()
            return _fit(recipe, dataset, kept, progress, tags, listener)


def _fit(
    recipe: Recipe,
    dataset: Dataset,
    kept: Checkpoints,
    progress: bool | None,
    tags: Mapping[str, str],
    listener: Listener | None,
) -> TrainResult:
    resume = kept.newest()
    # Weights, dropout and order come from the recipe's seed, and the caller's generators stay as they were.
    with torch.random.fork_rng():
        torch.manual_seed(recipe.fit.seed)
        graph = make_graph(recipe, dataset)
        plan = Plan.from_json(resume.state["facts"]["plan"]) if resume else _plan(graph, dataset, recipe)
        torch.manual_seed(recipe.fit.seed)  # the same dropout whether the plan was measured just now or remembered
        with plan.computing():
            try:
                result = _fit_and_log(recipe, dataset, graph, plan, kept, resume, progress, tags, listener)
            except (Diverged, Enough):
                kept.finish()  # from there it would only diverge again, or be stopped again
                raise
    kept.finish()
    return result


def estimate(recipe: Recipe) -> float:
    """Seconds that the training steps of a recipe's epochs would take here, from a few timed ones.

    Early stopping makes it less, validation more. Raises as `train` does before anything is fitted.
    """
    recipe = pin(recipe)
    dataset = load(recipe.data)
    with torch.random.fork_rng():
        graph = make_graph(recipe, dataset)
        plan = _plan(graph, dataset, recipe)
        with plan.computing():
            trial = make_trial(graph, dataset.train, recipe, steps=_steps(dataset, recipe))
            rate = steps_per_second(trial(plan), plan.device, seconds=0.5)
    return _steps(dataset, recipe) / rate


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
    # A histogram gives both exactly, without a float copy of the images, which may be too many for memory
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), 4096):
        part = images[start : start + 4096]
        counts += [np.bincount(part[..., channel].reshape(-1), minlength=256) for channel in range(channels)]
    for channel in range(channels):
        share = counts[channel] / counts[channel].sum()
        mean.append(float(share @ values))
        std.append(float(np.sqrt(share @ (values - mean[-1]) ** 2)) or 1.0)
    return tuple(mean), tuple(std)


def _fit_and_log(
    recipe: Recipe,
    dataset: Dataset,
    graph: ServedGraph,
    plan: Plan,
    kept: Checkpoints,
    resume: Snapshot | None,
    progress: bool | None,
    given: Mapping[str, str],
    listener: Listener | None,
) -> TrainResult:
    counts = count_parameters(graph.network)
    tags = {
        "stride.data_fingerprint": dataset.fingerprint,
        "stride.test_fingerprint": dataset.test_fingerprint,
        "stride.code_version": code_version(),
        **{f"stride.{key}": value for key, value in plan.facts().items()},
        **given,
    }
    with open_fit_run(recipe, tags=tags, kept=kept, resume=resume) as run:
        kept.facts = {"plan": plan.to_json(), "run_id": run.run_id}
        run.dataset(dataset)
        run.file("plan.json", json.dumps(plan.to_json(), indent=2))
        series = ImageSeries(run, dataset.validation)
        with closing(Progress(show=progress)) as shown:
            series.log(0, graph)  # before anything is learned; MLflow's slider begins here
            result = fit(
                graph,
                dataset.train,
                dataset.validation,
                recipe,
                plan,
                log=Told(run, listener) if listener else run,
                progress=shown,
                watch=series.watch,
                keeper=kept,
                resume=resume,
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
            "images_from": result.images_from,
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
            resumed=result.resumed,
            plan=plan.summary,
        )
        if trouble := kept.trouble:
            _log.warning("%s", trouble)
            run.tags({"stride.checkpoints": trouble})
        run.file(runs.RESULT, json.dumps(answer.to_json(), indent=2))
    return replace(answer, tracked=run.tracked)


def _finished(recipe: Recipe, dataset: Dataset, tags: Mapping[str, str]) -> TrainResult | None:
    run_id = find_finished(recipe, data_fingerprint=dataset.fingerprint, code_version=code_version(), tags=tags)
    content = runs.read_result(run_id) if run_id else None
    return TrainResult(**{**content, "reused": True}) if content else None


def _plan(graph: ServedGraph, dataset: Dataset, recipe: Recipe) -> Plan:
    steps = _steps(dataset, recipe)
    weights = sum(p.numel() * p.element_size() for p in graph.parameters())
    with naming_the_batch_size(recipe, choose_device()[0]):
        plan = choose_plan(
            recipe.fit.precision,
            trial=make_trial(graph, dataset.train, recipe, steps=steps),
            key=f"{recipe.digest()}|{dataset.train.images.shape[1:]}|{len(dataset.labels)}",
            cache=places.home() / "cache",
            steps=steps,
            weights=weights,
        )
        # Not remembered with the rest: how much room there is is another matter every time
        return replace(plan, features=may_be_held(graph, recipe, plan, dataset.train, dataset.validation))


def _steps(dataset: Dataset, recipe: Recipe) -> int:
    return len(batch_bounds(len(dataset.train), recipe.fit.batch_size)) * recipe.fit.epochs
