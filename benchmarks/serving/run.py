"""The whole run: environments, model, turns, tensors, swaps; kept after every step, ended without a rest."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.serving import environments, host, report, servers, swaps, tensors, turn, verdict
from benchmarks.serving.environments import NoEnvironment
from benchmarks.serving.family import Family, Unfit, on_core
from benchmarks.serving.options import Options
from benchmarks.serving.plan import plan
from benchmarks.serving.servers import Place, Server
from benchmarks.serving.turn import Bench
from benchmarks.serving.verdict import Bar
from contracts import places
from contracts.errors import StrideError
from contracts.images import encode_png
from pipelines import processes

Say = Callable[[str], None]
_FLOOR: Final = "bare onnxruntime"
_TRIES: Final = 2
"""A server that could not be measured so often is not started again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What it came to."""

    results: dict[str, Any]
    bars: list[Bar]
    report: Path

    @property
    def held(self) -> bool:
        return verdict.held(self.bars)


def run(options: Options, *, say: Say) -> Outcome:
    """Measure, and write RESULTS.md and results.json.

    Raises:
        RecipeError: this machine has not the two cores that it takes, or is not Linux.
        StrideError: the model cannot be made, or MLflow cannot be started.
    """
    cores = host.cores()
    with host.interruptible(), host.many_files(), ExitStack() as stack:
        return _Run(options, cores, stack, say).whole()


class _Run:
    def __init__(self, options: Options, cores: tuple[int, int], stack: ExitStack, say: Say) -> None:
        self._options = options
        self._stack = stack
        self._chosen = [*servers.STRIDE, *(servers.BY_NAME[name] for name in options.peers)]
        self._plan = plan(servers=len(self._chosen), minutes=options.minutes, quick=options.quick)
        self._client_core, self._server_core = cores
        self._say_ = say
        self._started = time.monotonic()
        self._work = places.home() / "bench" / "serving"
        self._interpreters: dict[str, Path] = {}
        self._results: dict[str, Any] = {
            "command": options.command,
            "date": datetime.now(UTC).date().isoformat(),
            "complete": False,
            "notes": [],
            "busy": [],
            "repeats": 0,
            "machine": host.machine(cores),
            "servers": {server.name: _described(server) for server in self._chosen},
            "floor": {},
            "tensors": {},
            "swaps": {},
        }

    def whole(self) -> Outcome:
        self._make_environments()
        self._started = time.monotonic()  # what is installed does not count
        self._prepare()
        self._stack.enter_context(on_core(self._client_core))
        try:
            self._turns()
            self._tensors()
            self._swaps()
            self._results["complete"] = True
        finally:
            self._save()
        path = self._save()
        self._say(f"done in {(time.monotonic() - self._started) / 60:.1f} minutes")
        return Outcome(results=self._results, bars=verdict.bars(self._results), report=path)

    def _make_environments(self) -> None:
        for lock in dict.fromkeys(server.lock for server in self._chosen if server.lock):
            try:
                self._interpreters[lock] = environments.python(lock, say=self._say)
            except NoEnvironment as error:
                for server in self._chosen:
                    if server.lock == lock:
                        self._unfit(server, error.message, final=True)
        for server in self._chosen:
            versions = self._results["servers"][server.name]["versions"]
            if server.lock is None:
                versions.update({name: metadata.version(name) for name in server.packages if host.installed(name)})
            elif interpreter := self._interpreters.get(server.lock):
                versions.update(environments.versions(interpreter, server.packages))

    def _prepare(self) -> None:
        self._say("making the model: one epoch, export, tune (seconds where it was made before)")
        directory = self._work / "model"
        home = self._work / "home"
        environment = {**servers.base_environment(), "STRIDE_HOME": str(home), "STRIDE_DATA": str(places.data())}
        command = [sys.executable, "-m", "benchmarks.serving.prepare", str(directory)]
        path = self._logs() / "prepare.log"
        with path.open("wb") as log:
            done = subprocess.run(  # noqa: S603 - our own command line
                command,
                cwd=processes.ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode:
            raise StrideError(f"the model could not be made; its log {path} ends:\n{processes.tail(path)}")
        model: dict[str, Any] = json.loads((directory / "model.json").read_text())
        self._models: dict[str, Any] = model["models"]
        told = ("data", "recipe", "parameters", "test_accuracy", "tuning")
        self._results["model"] = {key: model[key] for key in told}
        self._labels = tuple(model["labels"])
        self._images: NDArray[np.uint8] = np.load(directory / "images.npy")
        self._results["images"] = len(self._images)
        self._start_registry(home)
        self._bench = Bench(
            plan=self._plan,
            server_core=self._server_core,
            client_core=self._client_core,
            pngs=[encode_png(image) for image in self._images],
            work=self._work,
            registry=self._registry,
        )
        self._start_floor(directory / "images.npy")
        for server in servers.STRIDE:
            if server.precision not in self._models:
                self._unfit(server, f"no {server.precision} graph was chosen: {model['tuning']}", final=True)

    def _start_registry(self, home: Path) -> None:
        from services.tracking import server as tracking

        (port,) = turn.free_ports(1)
        configured = tracking.embedded(home=home, port=port)
        self._registry = configured.url
        family = Family(
            configured.command(),
            name="MLflow",
            core=self._client_core,
            environment=configured.environment(servers.base_environment()),
            log=self._logs() / "mlflow.log",
        )
        self._stack.enter_context(family)
        family.wait(lambda: tracking.problem_of(configured.url) is None, within_s=120)

    def _start_floor(self, images: Path) -> None:
        graphs = [
            entry["graph"] + (":extended" if entry["optimization"] == "extended" else "")
            for entry in self._models.values()
        ]
        self._floor = Family(
            [sys.executable, "-m", "benchmarks.serving.floor", str(images), *graphs],
            name=_FLOOR,
            core=self._server_core,
            environment=servers.base_environment(),
            log=self._logs() / "floor.log",
            talks=True,
        )
        self._stack.enter_context(self._floor)
        self._graph_of = {precision: number for number, precision in enumerate(self._models)}
        self._expected: dict[str, NDArray[np.float64]] = {}
        for precision, number in self._graph_of.items():
            self._expected[precision] = np.array(json.loads(self._floor.ask(f"answers {number}")))
            warm = self._floor_run("png", precision, 200)
            self._results["floor"][precision] = {
                "title": f"{_FLOOR}, {precision}",
                "each_s": warm["wall_s"] / warm["images"],
                "turns": [],
            }

    def _floor_run(self, word: str, precision: str, count: int) -> dict[str, float]:
        found: dict[str, float] = json.loads(self._floor.ask(f"{word} {self._graph_of[precision]} {max(1, count)}"))
        return found

    def _turns(self) -> None:
        longest = 0.0
        for repeat in range(self._plan.repeats):
            left = self._plan.minutes * 60 - self._plan.reserve_s - (time.monotonic() - self._started)
            if repeat and longest > left:
                self._results["notes"].append(f"Only {repeat} of {self._plan.repeats} turns fitted into the time.")
                break
            begun = time.monotonic()
            # Nothing of ours is at work here.
            self._results["busy"].append(psutil.cpu_percent(interval=1.0) / 100)
            self._measure_floor()
            # Another one comes first each time: whoever follows a restart of Ray must not always be the same.
            for server in [*self._chosen[repeat:], *self._chosen[:repeat]]:
                self._turn(server, repeat)
            self._results["repeats"] = repeat + 1
            self._save()
            longest = max(longest, time.monotonic() - begun)

    def _measure_floor(self) -> None:
        for precision, entry in self._results["floor"].items():
            found = self._floor_run("png", precision, int(self._plan.floor_s / entry["each_s"]))
            each = {"png_cpu_s": found["cpu_s"] / found["images"], "png_wall_s": found["wall_s"] / found["images"]}
            entry["turns"].append(each)

    def _turn(self, server: Server, repeat: int) -> None:
        entry = self._results["servers"][server.name]
        if entry["final"]:
            return
        self._say(f"turn {repeat + 1}: {server.title}")
        # Once equal is equal: it is the same file, and what was asked is the same in every turn.
        expected = None if "difference" in entry else self._expected[server.precision]
        try:
            with turn.scratch() as directory:
                found = turn.take(self._bench, server, self._place(server, directory), expected)
        except Unfit as error:
            self._unfit(server, error.message, final=False)
            return
        except OSError as error:  # its command is not there, a log cannot be written
            self._unfit(server, f"{server.title} cannot be measured: {error}", final=False)
            return
        if expected is not None:
            entry |= {"difference": found["difference"], "proved": len(expected)}
        entry["turns"].append(found)
        rates = ", ".join(f"{each['rate']:,.0f}/s at {count}" for count, each in found["closed"].items())
        self._say(f"  {rates} connections")

    def _place(self, server: Server, directory: Path) -> Place:
        port, *more = turn.free_ports(3)
        model = self._models[server.precision]
        return Place(
            interpreter=self._interpreters[server.lock] if server.lock else Path(sys.executable),
            port=port,
            more_ports=(more[0], more[1]),
            scratch=directory,
            model=Path(model["graph"]),
            labels=self._labels,
            registered=model["name"],
            registry=self._registry,
        )

    def _tensors(self) -> None:
        for server in self._of_stride():
            self._say(f"64 tensors a request: {server.title}")
            precision = server.precision
            each_s = self._floor_run("batch", precision, 3)["wall_s"] / 3

            def bare(seconds: float, precision: str = precision, each_s: float = each_s) -> tuple[float, float]:
                found = self._floor_run("batch", precision, int(seconds / each_s))
                return found["cpu_s"], found["images"]

            try:
                with turn.scratch() as directory:
                    found = tensors.measure(self._bench, server, self._place(server, directory), self._images, bare)
            except (Unfit, OSError) as error:
                found = {"problem": str(error)}
            self._results["tensors"][server.name] = found
            self._save()

    def _swaps(self) -> None:
        ready = [server for server in self._of_stride() if self._results["servers"][server.name]["turns"]]
        if not ready:
            self._results["swaps"] = {"problem": "Stride could not be measured"}
            return
        server = ready[-1]  # the tuned graph is what `ship` serves
        self._say(f"swaps: {server.title}")
        peak = verdict.median_of(self._results["servers"][server.name], "peak") or 0.0
        versions = self._models[server.precision]["versions"]
        try:
            with turn.scratch() as directory:
                found = swaps.measure(self._bench, server, self._place(server, directory), versions, peak)
        except (Unfit, OSError) as error:
            found = {"problem": str(error), "wanted": self._plan.swaps}
        self._results["swaps"] = {**found, "server": server.name}

    def _of_stride(self) -> list[Server]:
        return [server for server in servers.STRIDE if server.precision in self._models]

    def _unfit(self, server: Server, reason: str, *, final: bool) -> None:
        entry = self._results["servers"][server.name]
        entry["problem"] = reason
        entry["tries"] += 1
        entry["final"] = final or entry["tries"] >= _TRIES
        self._say(f"  {reason}")

    def _save(self) -> Path:
        output = self._options.output
        output.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("results.json", json.dumps(self._results, indent=1) + "\n"),
            ("RESULTS.md", report.render(self._results)),
        ):
            staged = output / f".{name}.tmp"
            staged.write_text(text)
            staged.replace(output / name)
        return output / "RESULTS.md"

    def _logs(self) -> Path:
        path = self._work / "logs"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _say(self, text: str) -> None:
        elapsed = int(time.monotonic() - self._started)
        self._say_(f"[{elapsed // 60:2d}:{elapsed % 60:02d}] {text}")


def _described(server: Server) -> dict[str, Any]:
    return {
        "title": server.title,
        "setup": server.setup,
        "source": server.source,
        "versions": {},
        "turns": [],
        "tries": 0,
        "final": False,
    }
