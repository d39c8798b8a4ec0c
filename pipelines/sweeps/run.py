"""A sweep, whole: the space is checked, the trials run, the summary stands in their parent's run.

What is on the disk decides: the ledger of a killed sweep is gone on from, trial by trial, each from its own checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from contracts import durable, places
from contracts.errors import FitError, RecipeError, RequestError
from contracts.recipe import Recipe
from pipelines import recipe_files
from pipelines.sweeps import cluster, ledger, parent, space
from pipelines.sweeps.ledger import Ledger, Mode, Trial
from services.training.code_version import code_version
from services.training.data import load
from services.training.jobs.job import wrong_gpus
from services.training.pinning import pin

METRICS: Final = ("validation/accuracy", "validation/loss")
_REDUCTION: Final = 3
"""Of the trials that reach a rung, one in so many goes on to the next (ASHA, Li et al. 2020)."""
_PASSED_ON: Final = ("STRIDE_", "MLFLOW_")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is swept, and with what."""

    recipe: str
    overrides: tuple[str, ...] = ()
    """`--set` items, the same for all trials."""
    space: tuple[str, ...]
    """`--space` items."""
    trials: int = 20
    metric: str = "validation/accuracy"
    """One of METRICS; of the weights that a fit keeps."""
    seed: int = 0
    """Of the search; the recipe's own is that of the fits."""
    grace: int | None = None
    """Epochs before a trial may be stopped; None is a fifth of the recipe's."""
    cpus: float = 1.0
    """That a trial takes."""
    gpus: float | None = None
    """Likewise, parts of one allowed; None is one where there are any."""
    parallel: int | None = None
    """Most trials at once; None is as many as there is room for."""

    @property
    def mode(self) -> Mode:
        return "max" if self.metric.endswith("accuracy") else "min"


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResult:
    """What a sweep came to."""

    sweep: str
    run_id: str
    """Of the parent."""
    metric: str
    trials: tuple[Trial, ...]
    best: Trial | None
    """Of those that finished: its run has the weights. None where none did."""
    importance: dict[str, float]
    reused: bool
    """Whether there was nothing to do: the same sweep is finished."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def sweep(options: Options, *, say: Callable[[str], None], force: bool = False, resume: bool = False) -> SweepResult:
    """Run a sweep, or go on with the one that the same options have begun.

    Args:
        options: What is swept.
        say: Told of every trial that is over.
        force: Begin anew.
        resume: Refuse where there is nothing to go on with.

    Raises:
        RecipeError: a key or a space that is not known.
        RequestError: nothing to resume.
        AlreadyFitting: the same sweep is running.
        DataError: the images cannot be read.
        DeviceError: no Ray, or a trial needs more than it has.
        RegistryError: no tracking server.
        FitError: trials could not come to their end, and the same command tries them again; or what is known of the
            sweep on this disk is damaged.
    """
    if options.gpus is not None and (wrong := wrong_gpus(options.gpus)) is not None:
        raise RecipeError(f"--gpus is {options.gpus:g}; {wrong}.")
    if options.metric not in METRICS:
        raise RecipeError(f"--metric is {options.metric!r}; use one of {', '.join(METRICS)}.")
    varied = space.parse(options.space)
    space.check(varied, options.recipe, options.overrides)
    recipe = pin(recipe_files.load(options.recipe, options.overrides))
    load(recipe.data)  # what is wrong with the images is told here, once
    directory = places.home() / "sweeps" / f"{recipe.name}-{_identity(recipe, options, varied)[:12]}"
    trials_file, about = directory / "trials.jsonl", directory / "sweep.json"
    with ledger.alone(directory, f"sweep of '{recipe.name}'"):
        if resume and not trials_file.exists():
            raise RequestError(
                f"sweep of '{recipe.name}': there is none to resume with these options; leave --resume out, or give "
                "the options that it was begun with."
            )
        if force:
            for path in (trials_file, about):
                path.unlink(missing_ok=True)
        known = _read(about) or {"sweep": secrets.token_hex(6)}
        book = Ledger(trials_file)
        if "run_id" in known and known.get("done") == "yes" and len(book.over()) >= options.trials:
            return _result(known, book, varied, options, reused=True)
        known = {**known, "done": "no"}
        _write(about, known)  # before there is a run, which is found by the sweep's id where this is killed
        facts = {"recipe": recipe.name, "metric": options.metric, "seed": str(options.seed)}
        with parent.open_parent(recipe, varied, sweep=known["sweep"], facts=facts) as run:
            known["run_id"] = run.run_id
            problems = _run_trials(options, varied, book, known, directory, say)
            children = run.children(known["sweep"])
            for trial in book.trials.values():
                trial.run_id = trial.run_id or children.get(trial.number)
            result = _result(known, book, varied, options, reused=False)
            run.summarise(
                result.trials,
                varied,
                metric=options.metric,
                mode=options.mode,
                best=result.best,
                importance=result.importance,
            )
            if problems:
                number, problem = min(problems.items())
                raise FitError(
                    f"sweep of '{recipe.name}': {len(problems)} of {options.trials} trials did not come to their end "
                    f"(trial {number}: {problem.rstrip('.')}); the same command tries them again."
                )
            _write(about, {**known, "done": "yes"})
        return result


def _run_trials(
    options: Options,
    varied: space.Space,
    book: Ledger,
    known: dict[str, str],
    directory: Path,
    say: Callable[[str], None],
) -> dict[int, str]:
    """Run what is left of the trials; the problems of those that did not come to their end."""
    left = options.trials - len(book.over())
    if left <= 0:
        return {}
    if book.trials:
        say(f"going on with {len(book.over())} of {options.trials} trials done, {len(book.open())} begun")
    with cluster.running(cpus=options.cpus, gpus=options.gpus) as gpus:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        from pipelines.sweeps.search import StudySearch
        from pipelines.sweeps.trial import FitTrial

        logging.getLogger("ray.tune").setLevel(logging.ERROR)

        def ended(trial: Trial) -> None:
            value = trial.best(options.mode)
            shown = "–" if value is None else f"{value:.4f}"
            values = " ".join(f"{key}={json.dumps(value)}" for key, value in trial.values.items())
            say(f"trial {trial.number} {trial.state}, {len(book.over())} of {options.trials}  {shown}  {values}")

        search = StudySearch(
            book,
            varied,
            trials=options.trials,
            mode=options.mode,
            seed=options.seed,
            config=lambda trial: _config(trial, options, known, gpus),
            ended=ended,
        )
        epochs = _epochs(options, varied)
        grace = options.grace or max(1, epochs // 5)
        scheduler = None
        if grace < epochs:
            scheduler = ASHAScheduler(time_attr="epoch", max_t=epochs, grace_period=grace, reduction_factor=_REDUCTION)
        tuner = tune.Tuner(
            tune.with_resources(FitTrial, {"cpu": options.cpus, "gpu": gpus}),
            tune_config=tune.TuneConfig(
                metric="value",
                mode=options.mode,
                search_alg=search,
                scheduler=scheduler,
                num_samples=left,
                max_concurrent_trials=options.parallel,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(directory / "ray"),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a fit keeps its own
            ),
        )
        try:
            grid = tuner.fit()
        finally:
            shutil.rmtree(directory / "ray", ignore_errors=True)  # the ledger holds all that matters
        reasons = [(str(error).strip().splitlines() or [type(error).__name__])[-1] for error in grid.errors]
        unsaid = f" ({reasons[0][:300]})" if reasons else ""
        return {number: problem or f"its process died{unsaid}" for number, problem in search.problems.items()}


def _config(trial: Trial, options: Options, known: dict[str, str], gpus: float) -> dict[str, Any]:
    """What the process of a trial gets; the machine that it runs on may know nothing of this one's environment."""
    recipe = pin(space.with_values(options.recipe, options.overrides, trial.values))
    given = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    there = {
        "STRIDE_HOME": str(places.home()),
        "STRIDE_DATA": str(places.data()),
        "MLFLOW_TRACKING_URI": places.tracking_uri(),
        **({} if gpus else {"STRIDE_DEVICE": "cpu"}),
    }
    tags = {parent.PARENT: known["run_id"], parent.SWEEP: known["sweep"], parent.TRIAL: str(trial.number)}
    return {
        "recipe": recipe.model_dump(mode="json"),
        "tags": tags,
        "metric": options.metric,
        "environment": {**given, **there},
    }


def _result(known: dict[str, str], book: Ledger, varied: space.Space, options: Options, *, reused: bool) -> SweepResult:
    from pipelines.sweeps.search import importance

    trials = sorted(book.over(), key=lambda trial: trial.number)
    finished = [trial for trial in trials if trial.state == "finished" and trial.value is not None]
    pick = max if options.mode == "max" else min
    return SweepResult(
        sweep=known["sweep"],
        run_id=known["run_id"],
        metric=options.metric,
        trials=tuple(trials),
        best=pick(finished, key=lambda trial: trial.value or 0.0) if finished else None,
        importance=importance(trials, varied, options.mode),
        reused=reused,
    )


def _epochs(options: Options, varied: space.Space) -> int:
    """The most epochs that a trial may have."""
    fixed = recipe_files.load(options.recipe, options.overrides).fit.epochs
    swept = varied.get("fit.epochs")
    return int(max(swept.probes())) if swept else fixed


def _identity(recipe: Recipe, options: Options, varied: space.Space) -> str:
    """sha256 of all that decides a sweep but the number of its trials: with more of them it goes on."""
    spelt = {key: str(dimension) for key, dimension in varied.items()}
    decides = (recipe.digest(), recipe.model_name, spelt, options.metric, options.seed, options.grace, code_version())
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """What is known of a sweep that was begun before; nothing where none was.

    Raises:
        FitError: the file is damaged.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ledger.damaged(path, f"it is no JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("sweep"), str):
        raise ledger.damaged(path, "it does not say which sweep it is of")
    return content


def _write(path: Path, content: dict[str, str]) -> None:
    durable.write(path, json.dumps(content).encode())
