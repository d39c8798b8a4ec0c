"""One trial: Stride's own fit, whole, which waits after every epoch for whether it may go on."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from typing import Any, Final, TypedDict, cast

from ray.tune import Trainable

from contracts.errors import AlreadyFitting, Diverged, StrideError
from contracts.recipe import parse
from services.training.listening import Enough

STOP_S: Final = 120.0
"""How long a fit that is stopped may take to close its run."""
ORPHANED_S: Final = 60.0
"""How long one that was orphaned, its sweep killed, may hold the fit that is taken up again."""

_log = logging.getLogger(__name__)


class Config(TypedDict):
    """What the process of a trial gets."""

    recipe: dict[str, Any]
    tags: dict[str, str]
    metric: str
    environment: dict[str, str]
    """Where things are, for a process that may have been started elsewhere."""


class SteppedFit:
    """A fit in a thread of its own: `step` gives its epochs, one a call, `stop` ends it after the one it is at."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._reports: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
        self._may_go_on = threading.Semaphore(0)
        self._stopped = False
        self._seen = 0
        self._thread = threading.Thread(target=self._run, name="stride-fit", daemon=True)

    def step(self) -> dict[str, Any]:
        """Fit an epoch: its number and the metric; with `done`, also the run's id, or the problem that ended it.

        Raises:
            StrideError, Exception: what the fit has raised, unless its loss was not finite: that is a result.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._may_go_on.release()
        report = self._reports.get()
        if isinstance(report, BaseException):
            raise report
        return report

    def stop(self) -> None:
        """End the fit, if it goes on, and wait until its run is closed."""
        self._stopped = True
        self._may_go_on.release()
        if self._thread.is_alive():
            self._thread.join(STOP_S)

    def _run(self) -> None:
        try:
            self._reports.put(self._fit())
        except Enough:
            pass
        except BaseException as error:  # noqa: BLE001 - `step` raises it
            self._reports.put(error)

    def _fit(self) -> dict[str, Any]:
        from services.training.train import train

        content, metric = self._config["recipe"], self._config["metric"]
        recipe = parse(content, name=content["name"])
        epochs, waited_until = recipe.fit.epochs, time.monotonic() + ORPHANED_S

        def hear(epoch: int, metrics: dict[str, float]) -> None:
            self._seen = epoch
            if epoch >= epochs:  # reported once its run is finished: nobody shall stop it now
                return
            self._reports.put({"epoch": epoch, "value": metrics[metric]})
            self._may_go_on.acquire()
            if self._stopped:
                raise Enough

        while True:
            try:
                result = train(recipe, progress=False, tags=self._config["tags"], listener=hear)
                break
            except Diverged as error:
                return {"epoch": self._seen + 1, "done": True, "problem": error.message, "diverged": True}
            except AlreadyFitting:
                if time.monotonic() > waited_until:
                    raise
                _log.info("another process is still at this trial")
                time.sleep(0.5)
        values = {"validation/accuracy": result.validation_accuracy, "validation/loss": result.validation_loss}
        return {"epoch": epochs, "value": values[metric], "done": True, "run_id": result.run_id}


class FitTrial(Trainable):
    """The same for Ray Tune, which asks, epoch by epoch."""

    def setup(self, config: dict[str, Any]) -> None:
        os.environ.update(config["environment"])
        self._fit = SteppedFit(cast("Config", config))

    def step(self) -> dict[str, Any]:
        try:
            return self._fit.step()
        except StrideError as error:  # of what is raised Ray keeps a traceback, and the sweep needs a sentence
            return {"epoch": 0, "done": True, "problem": error.message}
        except Exception as error:  # noqa: BLE001 - likewise; the sweep ends with it and exits 1
            return {
                "epoch": 0,
                "done": True,
                "problem": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            }

    def cleanup(self) -> None:
        self._fit.stop()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process: torch and MLflow need not be imported again."""
        self._fit.stop()
        self.setup(new_config)
        return True
