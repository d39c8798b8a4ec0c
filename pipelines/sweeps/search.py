"""Which values the next trial gets: Optuna's tree-structured Parzen estimator, behind Ray Tune's interface.

    J. Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011.

The ledger is the state: from it a killed sweep's study is built again, and the trials that were running come first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import optuna
from ray.tune.search import Searcher

from pipelines.sweeps.ledger import Ledger, Mode, Trial
from pipelines.sweeps.space import Space

if TYPE_CHECKING:
    from optuna.study import Study

VALUE = "value"
"""The key of the metric in what a trial reports."""


class StudySearch(Searcher):
    """Suggests trials, and writes down what becomes of them; called by Ray Tune in the process that runs the sweep."""

    def __init__(
        self,
        ledger: Ledger,
        space: Space,
        *,
        trials: int,
        mode: Mode,
        seed: int,
        config: Callable[[Trial], dict[str, Any]],
        ended: Callable[[Trial], None],
    ) -> None:
        """Go on from a ledger.

        Args:
            ledger: The sweep's.
            space: What varies.
            trials: How many there will be in all.
            mode: Whether a higher value is better.
            seed: Of the search.
            config: What Ray hands to the process of a trial.
            ended: Told of each trial that is over.
        """
        super().__init__(metric=VALUE, mode=mode)
        self._ledger, self._space, self._trials, self._better = ledger, space, trials, mode
        self._config, self._ended = config, ended
        self._waiting = [trial.number for trial in ledger.open()][: max(0, trials - len(ledger.over()))]
        self.problems: dict[int, str | None] = {}
        """By number, why trials did not come to their end; None where only Ray knows."""
        self._study = study(ledger, space, mode=mode, seed=seed)
        self._asked: dict[int, optuna.Trial] = {}
        self._numbers: dict[str, int] = {}
        """Ray's ids -> ours."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        distributions = {key: dimension.distribution() for key, dimension in self._space.items()}
        if self._waiting:
            trial = self._ledger.trials[self._waiting.pop(0)]
            self._study.enqueue_trial(trial.drawn)
            asked = self._study.ask(distributions)
        elif len(self._ledger.trials) < self._trials:
            asked = self._study.ask(distributions)
            values = {key: self._space[key].value(drawn) for key, drawn in asked.params.items()}
            trial = self._ledger.begin(values, asked.params)
        else:
            return str(Searcher.FINISHED)
        self._asked[trial.number] = asked
        self._numbers[trial_id] = trial.number
        return self._config(trial)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        number, value = self._numbers[trial_id], result.get(VALUE)
        if value is not None:
            self._ledger.epoch(number, int(result["epoch"]), float(value))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number, found = self._numbers[trial_id], result or {}
        trial, value, run_id = self._ledger.trials[number], found.get(VALUE), found.get("run_id")
        problem = found.get("problem")
        if error or (problem and not found.get("diverged")):
            # Of the machine, not of the values: the trial stays open, to be tried again
            self.problems[number] = problem
        elif problem:
            self._ledger.end(number, "failed", problem=problem)
        elif run_id:
            self._ledger.end(number, "finished", value=value, run_id=run_id)
        else:
            # Ray reports the last epoch of a trial that is stopped here alone
            if value is not None and int(found["epoch"]) not in trial.epochs:
                self._ledger.epoch(number, int(found["epoch"]), float(value))
            self._ledger.end(number, "stopped")
        frozen, asked = _frozen(trial, self._space, self._better), self._asked.pop(number)
        for epoch, value in trial.epochs.items():
            asked.report(value, epoch)
        self._study.tell(asked, frozen.value if frozen.state.name == "COMPLETE" else None, state=frozen.state)
        if trial.over:
            self._ended(trial)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is on the disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep goes on from its ledger, not from Ray's files."""

    def __getstate__(self) -> dict[str, Any]:
        """Ray stores a copy of every search for a way of resuming that is not used here."""
        return {"_metric": self._metric, "_mode": self._mode}


def study(ledger: Ledger, space: Space, *, mode: Mode, seed: int) -> Study:
    """Optuna's study of the trials that are over."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Another seed after every restart, or the same random draws would come again.
    sampler = optuna.samplers.TPESampler(seed=seed + len(ledger.trials), constant_liar=True)
    made = optuna.create_study(sampler=sampler, direction="maximize" if mode == "max" else "minimize")
    made.add_trials([_frozen(trial, space, mode) for trial in ledger.over()])
    return made


def importance(trials: list[Trial], space: Space, mode: Mode) -> dict[str, float]:
    """Each key's share of the variance of the result, by fANOVA (Hutter et al. 2014); the most important first.

    A trial that was stopped counts with its best value. Empty where there is too little to tell: fewer than four
    trials, or all alike.
    """
    known = [trial for trial in trials if trial.best(mode) is not None]
    if len(known) < 4 or len({trial.best(mode) for trial in known}) < 2:
        return {}
    made = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    distributions = {key: dimension.distribution() for key, dimension in space.items()}
    for trial in known:
        made.add_trial(
            optuna.trial.create_trial(value=trial.best(mode), params=trial.drawn, distributions=distributions)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(made, evaluator=evaluator)
    return {key: float(share) for key, share in sorted(found.items(), key=lambda item: -item[1])}


def _frozen(trial: Trial, space: Space, mode: Mode) -> optuna.trial.FrozenTrial:
    states = optuna.trial.TrialState
    best = trial.best(mode)
    state = states.FAIL
    if best is not None and trial.state in ("finished", "stopped"):
        state = states.COMPLETE if trial.state == "finished" else states.PRUNED
    return optuna.trial.create_trial(
        state=state,
        value=best if state == states.COMPLETE else None,
        params=trial.drawn,
        distributions={key: dimension.distribution() for key, dimension in space.items()},
        intermediate_values=trial.epochs,
    )
