"""One training run, whole: data, network, plan, fit, evaluation, report, weights; all of it in one MLflow run."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace

import torch

from contracts.errors import Diverged
from contracts.recipe import Recipe
from services.training import runs
from services.training.allocator import give_back
from services.training.calibration import calibrate, predict_both
from services.training.checkpoint_directory import discard_checkpoints, identity_of, open_checkpoints
from services.training.checkpoint_file import Snapshot
from services.training.checkpoints import Checkpoints
from services.training.code_version import code_version
from services.training.data import load
from services.training.data.dataset import Dataset
from services.training.device import Plan, choose_device, generators
from services.training.distributed.follow import invitation
from services.training.fit import fit
from services.training.fit_run import abandon, open_fit_run
from services.training.group import ALONE, Group
from services.training.image_series import ImageSeries
from services.training.initial_graph import make_graph
from services.training.listening import Enough, Listener, Told
from services.training.networks import ServedGraph, count_parameters
from services.training.pinning import pin
from services.training.planning import plan_of
from services.training.progress import Progress
from services.training.report import log_report
from services.training.stopping import Stopping
from services.training.tracking import find_finished
from services.training.train_result import TrainResult

_log = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    *,
    force: bool = False,
    progress: bool | None = None,
    tags: Mapping[str, str] | None = None,
    listener: Listener | None = None,
    group: Group = ALONE,
) -> TrainResult:
    """Fit a recipe and log it, or take the finished run of the same recipe, data and code.

    A fit that was killed, stopped or cut off goes on from its last checkpoint, in its own run.

    Args:
        recipe: What to fit.
        force: Fit even where such a run is finished, and from the beginning where one is not.
        progress: False shows nothing; see `services.training.progress`.
        tags: Of the run; where there are any, only a run with the same ones is taken or gone on with.
        listener: Hears of every epoch; where it raises `Enough`, the fit is over.
        group: The workers that fit together, of which this is the first; see `services.training.distributed`.

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
        give_back()  # what was read, unpacked and compared
        group.tell(invitation(recipe, dataset))
        identity = identity_of(recipe, dataset, device, tags)
        if not force and (reused := _finished(recipe, dataset, tags)) is not None:
            discard_checkpoints(identity)
            group.tell({"plan": None})
            return reused
        with open_checkpoints(recipe.name, identity, stopping=stopping) as kept:
            # Once more: the process that fitted the same may have been done in between
            if not force and (reused := _finished(recipe, dataset, tags)) is not None:
                kept.finish()
                group.tell({"plan": None})
                return reused
            if force and not group.restarts:
                abandon(kept)
                kept.clear()
            return _fit(recipe, dataset, kept, progress, tags, listener, group)


def _fit(
    recipe: Recipe,
    dataset: Dataset,
    kept: Checkpoints,
    progress: bool | None,
    tags: Mapping[str, str],
    listener: Listener | None,
    group: Group,
) -> TrainResult:
    resume = kept.newest()
    # Weights, dropout and order come from the recipe's seed, and the caller's generators stay as they were.
    with torch.random.fork_rng(devices=generators(choose_device()[0])):
        torch.manual_seed(recipe.fit.seed)
        graph = make_graph(recipe, dataset)
        kept_plan = Plan.from_json(resume.state["facts"]["plan"]) if resume else None
        plan = group.plan(kept_plan or plan_of(graph, dataset, recipe, group))
        group.tell({"plan": plan.to_json()})
        torch.manual_seed(recipe.fit.seed)  # the same dropout whether the plan was measured just now or remembered
        with plan.computing():
            try:
                result = _fit_and_log(recipe, dataset, graph, plan, kept, resume, progress, tags, listener, group)
            except (Diverged, Enough):
                kept.finish()  # from there it would only diverge again, or be stopped again
                raise
    kept.finish()
    return result


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
    group: Group,
) -> TrainResult:
    counts = count_parameters(graph.network)
    tags = {
        "stride.data_fingerprint": dataset.fingerprint,
        "stride.test_fingerprint": dataset.test_fingerprint,
        "stride.code_version": code_version(),
        "stride.workers": str(group.size),
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
            give_back()  # what measuring and opening the run took
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
                group=group,
            )
            give_back()  # a step's memory; no more of them are taken
            series.log(result.best_epoch, graph)  # the weights that were kept
        calibration = calibrate(graph, dataset.validation)
        give_back()
        graph.to("cpu").to(memory_format=torch.contiguous_format)
        runs.save(run, recipe=recipe, labels=dataset.labels, graph=graph)
        facts = {
            **plan.facts(),
            "workers": str(group.size),
            "parameters": f"{counts.total:,} ({counts.trainable:,} trainable)",
            "epochs": f"{len(result.history)}, the best was {result.best_epoch}; {result.stopped}",
            "seconds": f"{result.seconds:.1f}",
            "images_per_second": f"{result.images_per_second:,.0f}",
            "images_from": result.images_from,
            "temperature": str(calibration),
        }
        probabilities, uncalibrated = predict_both(graph, dataset.test.images)
        give_back()
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
            workers=group.size,
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
