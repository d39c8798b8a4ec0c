"""A fit in several processes of this machine: started, watched over, and started again where one is lost.

torch's elastic agent does it, as torchrun has it: when a process dies it ends the others and starts all of them again,
a few times. Each start finds the fit's checkpoints, and goes on from the last one in the same run.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from contracts.errors import FitError, RecipeError
from contracts.recipe import Recipe
from services.training.device import choose_device
from services.training.distributed.start import taken
from services.training.distributed.workers import LOST, too_many
from services.training.stopping import Terminated
from services.training.train_result import TrainResult

RESTARTS: Final = 3
"""How often a group is started again."""
_SHUTDOWN_S: Final = 30
"""How long workers that are told to end may take: the first one saves, and closes its run."""
_ROOT: Final = Path(__file__).resolve().parents[3]
_HANDLED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

_log = logging.getLogger(__name__)


def launch(
    recipe: Recipe,
    *,
    workers: int,
    force: bool = False,
    progress: bool | None = None,
    tags: Mapping[str, str] | None = None,
) -> TrainResult:
    """Fit a recipe in so many processes of this machine; see `train` for the rest, and for what it raises.

    Raises:
        RecipeError: there are fewer GPUs than workers.
        FitError: workers were lost, and starting them again did not help.
        Terminated, KeyboardInterrupt: SIGTERM or Ctrl-C; the workers have saved the fit, and it goes on next time.
    """
    if choose_device()[0] == "cuda" and workers > torch.cuda.device_count():
        raise RecipeError(too_many(workers, torch.cuda.device_count()))
    with tempfile.TemporaryDirectory(prefix="stride-workers-") as name:
        request = Path(name) / "request.json"
        content = {"recipe": recipe.model_dump(mode="json"), "force": force, "progress": progress}
        request.write_text(json.dumps({**content, "tags": dict(tags or {})}))
        threads = max(1, torch.get_num_threads() // workers)
        with _environment(threads), _handlers_put_back(), _quiet_agent():
            outcome = _run(recipe, request, workers)
        answer = _answer(request.parent)
    if answer is None:
        raise FitError(
            f"recipe '{recipe.name}': {_lost(outcome)}, and starting all {workers} again {RESTARTS} times did not "
            "help; look for what ends it, and run this again, which goes on from the last checkpoint."
        )
    return taken(answer)


class Agent(LocalElasticAgent):
    """torch's agent, which says what it does, and starts no fit again that has said why it cannot go on."""

    def __init__(self, spec: WorkerSpec, logs: Path, answers: Path) -> None:
        super().__init__(spec, DefaultLogsSpecs(log_dir=str(logs)), shutdown_timeout=_SHUTDOWN_S)
        self._answers = answers

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED:
            if _answer(self._answers) is not None:
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                size, most = worker_group.spec.local_world_size, worker_group.spec.max_restarts
                number = most - self._remaining_restarts + 1
                _log.warning(
                    "%s: all %d go on from the last checkpoint (restart %d of %d)", _lost(result), size, number, most
                )
        return result


def _run(recipe: Recipe, request: Path, workers: int) -> RunResult:
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint="localhost:0",  # a port that is free
        run_id=uuid.uuid4().hex,
        min_nodes=1,
        max_nodes=1,
        local_addr="127.0.0.1",
        is_host=True,
    )
    handler = get_rendezvous_handler(parameters)
    spec = WorkerSpec(
        role=recipe.name,
        local_world_size=workers,
        entrypoint=sys.executable,
        args=("-m", "services.training.distributed.start", str(request)),
        rdzv_handler=handler,
        max_restarts=RESTARTS,
    )
    try:
        outcome: RunResult = Agent(spec, request.parent / "logs", request.parent).run()
        return outcome
    except SignalException as error:
        if error.sigval == signal.SIGTERM:
            raise Terminated from None
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    finally:
        handler.shutdown()


def _answer(directory: Path) -> dict[str, Any] | None:
    """What a worker has answered, the first one before the others; None where none has yet."""
    paths = sorted(directory.glob("answer-*.json"), key=lambda path: int(path.stem.partition("-")[2]))
    if not paths:
        return None
    content: dict[str, Any] = json.loads(paths[0].read_text())
    return content


def _lost(outcome: RunResult) -> str:
    """Which worker died, and of what; not those that ended because it did."""

    def guess(rank: int) -> tuple[bool, bool, int]:
        code = outcome.failures[rank].exitcode
        return code in (LOST, 128 + signal.SIGTERM, -signal.SIGTERM), code > 0, rank

    if not outcome.failures:
        return "a worker is lost"
    rank = min(outcome.failures, key=guess)
    return f"worker {rank} is lost ({_ended(outcome.failures[rank])})"


def _ended(failure: ProcessFailure) -> str:
    if failure.exitcode >= 0:
        return f"it ended with {failure.exitcode}"
    return signal.Signals(-failure.exitcode).name


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """The environment that the workers inherit."""
    given = {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
        # All are on this machine, whose name may lead to an address that nobody listens on
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME") or ("lo" if sys.platform == "linux" else "lo0"),
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL") or "ERROR",
    }
    before = {name: os.environ.get(name) for name in (*given, "TORCHELASTIC_SIGNALS_TO_HANDLE")}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _handlers_put_back() -> Iterator[None]:
    """The agent sets handlers for the signals that end it, and leaves them."""
    before = {number: signal.getsignal(number) for number in _HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _quiet_agent() -> Iterator[None]:
    """The agent's own reports of what `Agent` says in a sentence."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]
    with ExitStack() as stack:
        for logger in map(logging.getLogger, names):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.CRITICAL)
        yield
