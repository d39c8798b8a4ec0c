"""The MLflow run that a sweep's trials are children of; it holds what they came to, side by side."""

from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from contracts import places
from contracts.errors import StrideError
from contracts.recipe import Recipe
from pipelines import recipe_files
from pipelines.sweeps import figures
from pipelines.sweeps.ledger import Mode, Trial
from pipelines.sweeps.space import Space
from services.training.mlflow_client import connect, registry_errors
from services.training.run import ERROR
from services.training.tracking import experiment_id

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARENT: Final = "mlflow.parentRunId"
SWEEP: Final = "stride.sweep"
TRIAL: Final = "stride.trial"
OF: Final = "stride.sweep.recipe"
"""Of the parent alone: the recipe's name."""
TABLE: Final = "sweep/trials.json"

_log = logging.getLogger(__name__)


class Parent:
    """An open parent run. Every method raises RegistryError where the server does not take what it is given."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str, experiment: str) -> None:
        self.run_id = run_id
        self._client, self._uri, self._experiment = client, uri, experiment

    def children(self, sweep: str) -> dict[int, str]:
        """The ids of the trials' runs, by number; of a trial that has several (it was begun anew), the newest."""
        found: dict[int, str] = {}
        with registry_errors(self._uri, "to look for a sweep's trials"):
            token = None
            while True:
                page = self._client.search_runs(
                    [self._experiment],
                    f"tags.`{SWEEP}` = '{sweep}' and tags.`{PARENT}` = '{self.run_id}'",
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
                found |= {int(run.data.tags[TRIAL]): run.info.run_id for run in page}
                token = page.token
                if not token:
                    return found

    def summarise(
        self,
        trials: Sequence[Trial],
        space: Space,
        *,
        metric: str,
        mode: Mode,
        best: Trial | None,
        importance: Mapping[str, float],
    ) -> None:
        """Log figures, the table, the best values and a page that opens the run."""
        drawn = {
            "parallel-coordinates": figures.parallel_coordinates(trials, space, metric=metric, mode=mode),
            "history": figures.history(trials, metric=metric, mode=mode),
            **({"importance": figures.importance(importance)} if importance else {}),
        }
        metrics = {
            f"sweep/{state}": float(sum(trial.state == state for trial in trials))
            for state in ("finished", "stopped", "failed")
        }
        metrics |= {f"importance/{key}": share for key, share in importance.items()}
        tags = {
            "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}]),
            "mlflow.note.content": page(trials, space, metric=metric, best=best, importance=importance, mode=mode),
        }
        if best is not None and best.run_id is not None:
            metrics[f"best/{metric.replace('/', '_')}"] = float(best.value or 0.0)
            tags |= {"stride.sweep.best_run": best.run_id, "stride.sweep.best_trial": str(best.number)}
            tags |= {f"best.{key}": json.dumps(value) for key, value in best.values.items()}
        with registry_errors(self._uri, "to log a sweep's summary"):
            for name, figure in drawn.items():
                self._client.log_figure(self.run_id, figure, f"sweep/{name}.png")
            self._client.log_text(self.run_id, json.dumps(table(trials, space, metric=metric, mode=mode)), TABLE)
            for key, value in metrics.items():
                self._client.log_metric(self.run_id, key, value)
            for key, text in tags.items():
                self._client.set_tag(self.run_id, key, text[:8000])

    def close(self, status: str) -> None:
        with registry_errors(self._uri, f"to close run {self.run_id}"):
            self._client.set_terminated(self.run_id, status)


@contextmanager
def open_parent(recipe: Recipe, space: Space, *, sweep: str, facts: Mapping[str, str]) -> Iterator[Parent]:
    """Open a sweep's run, or the one that it had before it was killed; it ends as `tracking.open_run` has it.

    It has no recipe's hash: nobody shall take it for a fit.

    Args:
        recipe: What all trials share.
        space: What varies.
        sweep: The sweep's id.
        facts: Parameters of the run, beside the space.

    Raises:
        RegistryError: no tracking server, or it refuses.
    """
    uri = places.tracking_uri()
    client = connect(uri)
    with registry_errors(uri, "to open a sweep's run"):
        experiment = experiment_id(client, uri, recipe.model_name)
        query = f"tags.`{SWEEP}` = '{sweep}' and tags.`{OF}` = '{recipe.name}'"
        earlier = client.search_runs([experiment], query, max_results=1)
        if earlier:
            run_id = earlier[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            if ERROR in earlier[0].data.tags:
                client.delete_tag(run_id, ERROR)
        else:
            run_id = _create(client, experiment, recipe, space, sweep, facts)
    parent = Parent(client, uri, run_id, experiment)
    try:
        yield parent
    except BaseException as error:
        message = error.message if isinstance(error, StrideError) else f"{type(error).__name__}: {error}"
        try:
            with registry_errors(uri, "to say why a sweep ended"):
                client.set_tag(run_id, ERROR, message[:8000])
            parent.close("FAILED" if isinstance(error, Exception) else "KILLED")
        except StrideError as problem:  # it must not hide what has happened
            _log.warning("run %s stays open in MLflow: %s", run_id, problem.message)
        raise
    parent.close("FINISHED")


def table(trials: Sequence[Trial], space: Space, *, metric: str, mode: Mode) -> dict[str, Any]:
    """The trials as MLflow's table artifact has them: columns, and a row each."""
    rows = [
        [
            trial.number,
            trial.state,
            trial.best(mode),
            len(trial.epochs),
            *trial.values.values(),
            trial.run_id,
            trial.problem,
        ]
        for trial in trials
    ]
    return {"columns": ["trial", "state", metric, "epochs reported", *space, "run", "problem"], "data": rows}


def page(
    trials: Sequence[Trial],
    space: Space,
    *,
    metric: str,
    mode: Mode,
    best: Trial | None,
    importance: Mapping[str, float],
) -> str:
    """What the run's page opens with, as Markdown."""
    counts = {state: sum(trial.state == state for trial in trials) for state in ("finished", "stopped", "failed")}
    lines = [f"**{len(trials)} trials**: {', '.join(f'{count} {state}' for state, count in counts.items())}.", ""]
    if best is not None:
        values = ", ".join(f"`{key}` {json.dumps(value)}" for key, value in best.values.items())
        lines += [f"Best {metric}: **{best.value:.4f}**, trial {best.number}, run `{best.run_id}`: {values}.", ""]
    lines += ["| key | varied over | importance |\n|---|---|---|"]
    lines += [
        f"| `{key}` | {dimension} | {f'{importance[key]:.2f}' if key in importance else '–'} |"
        for key, dimension in space.items()
    ]
    sign = 1 if mode == "min" else -1
    order = sorted(trials, key=lambda trial: math.inf if (value := trial.best(mode)) is None else sign * value)
    lines += ["", f"| trial | {metric} | state | {' | '.join(f'`{key}`' for key in space)} |"]
    lines += ["|---" * (3 + len(space)) + "|"]
    for trial in order[:20]:
        value = trial.best(mode)
        cells = [json.dumps(trial.values[key]) for key in space]
        shown = "–" if value is None else f"{value:.4f}"
        lines.append(f"| {trial.number} | {shown} | {trial.state} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _create(
    client: MlflowClient, experiment: str, recipe: Recipe, space: Space, sweep: str, facts: Mapping[str, str]
) -> str:
    from mlflow.entities import Param

    tags = {
        "mlflow.source.name": "stride",
        "mlflow.source.type": "LOCAL",
        SWEEP: sweep,
        OF: recipe.name,
    }
    name = f"sweep-{recipe.name}-{secrets.token_hex(3)}"
    run_id: str = client.create_run(experiment, tags=tags, run_name=name).info.run_id
    values = {**facts, **{f"space.{key}": str(dimension) for key, dimension in space.items()}}
    client.log_batch(run_id, params=[Param(key, value[:500]) for key, value in values.items()])
    client.log_text(run_id, recipe_files.dump(recipe), "recipe.yaml")
    return run_id
