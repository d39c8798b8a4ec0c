"""The training benchmark, whole: data, contenders in turns, rows, bars, RESULTS.md."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.serving import environments
from benchmarks.training import inputs
from benchmarks.training.bars import BARE, KERAS, LIGHTNING, STRIDE, Bar, judge, losses, summarise
from benchmarks.training.contest import Contender, Entry, hold
from benchmarks.training.report import markdown
from contracts import places
from contracts.errors import RequestError
from contracts.recipe import Recipe
from pipelines import recipe_files
from services.training.networks import build, count_parameters

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
THREADS: Final = 2
BF16: Final = "lightning-bf16"
MODULES: Final = {
    STRIDE: "stride_fit",
    KERAS: "keras_fit",
    LIGHTNING: "lightning_fit",
    BF16: "lightning_fit",
    BARE: "bare_step",
}
"""In the order of their first turns; the bare step takes the plan that Stride's fit has measured by then."""
PEERS: Final = (KERAS, LIGHTNING, BF16, BARE)
ELSEWHERE: Final = (KERAS, LIGHTNING, BF16)
"""They live in the peers' environment."""
EPOCH_S: Final = 900.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much of a recipe is fitted, and by whom. None leaves the recipe as it is."""

    epochs: int | None = None
    images: int | None = None
    """Training images."""
    seeds: int = 1
    """Of Stride and Keras; the others fit the first one."""
    left_out: tuple[str, ...] = ()


# 20 minutes on two cores hold three whole fits of MNIST by Keras, and four epochs of Fashion-MNIST.
USUAL: Final = {"mnist": Size(seeds=3), "fashion": Size(epochs=4, left_out=(LIGHTNING, BF16))}
FULL: Final = {"mnist": Size(seeds=3), "fashion": Size()}
QUICK: Final = {"mnist": Size(epochs=2, images=8_000), "fashion": Size(epochs=2, images=4_000)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a run measures."""

    size: str
    """usual, quick or full."""
    recipes: tuple[str, ...]
    peers: tuple[str, ...]
    output: Path

    @classmethod
    def of(
        cls,
        *,
        quick: bool = False,
        full: bool = False,
        recipes: str | None = None,
        peers: str | None = None,
        output: Path | None = None,
    ) -> Options:
        """Options as the command line has them.

        Raises:
            RequestError: a recipe or a peer that is not known, or --quick with --full.
        """
        if quick and full:
            raise RequestError("stride bench train has --quick and --full; keep one of them.")
        size = "quick" if quick else "full" if full else "usual"
        # A quick run's figures are no results, and never take the place of some.
        checkout = (ROOT / "pyproject.toml").exists() and not quick
        usual = HERE if checkout else places.home() / "bench" / "training"
        return cls(
            size=size,
            recipes=_chosen("--recipes", recipes, tuple(USUAL)),
            peers=() if peers == "none" else _chosen("--peers", peers, PEERS),
            output=output or usual,
        )

    @property
    def command(self) -> str:
        words = ["stride bench train", *([] if self.size == "usual" else [f"--{self.size}"])]
        if self.recipes != tuple(USUAL):
            words.append(f"--recipes {','.join(self.recipes)}")
        if self.peers != PEERS:
            words.append(f"--peers {','.join(self.peers) or 'none'}")
        return " ".join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a run came to."""

    results: dict[str, Any]
    """By recipe: all that was measured, as results.json holds it."""
    bars: tuple[Bar, ...]
    """Of the recipes of this run."""
    report: Path

    @property
    def held(self) -> bool:
        return all(bar.held is not False for bar in self.bars)


def run(options: Options, *, say: Callable[[str], None]) -> Outcome:
    """Measure, and write RESULTS.md and results.json; sections of recipes that are not in this run stay.

    Raises:
        DataError, RecipeError: the data sets are damaged.
    """
    interpreters = _interpreters(options, say)
    load = psutil.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is not quiet (load {load:.2f}): figures will be low and spread")
    machine = {**_machine(), "load": load}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="stride-bench-") as scratch:
        for name in options.recipes:
            results[name] = _recipe(name, options, machine, interpreters, Path(scratch), say)
            bars = [Bar(**bar) for bar in results[name]["bars"]]
            for bar in bars:
                say(f"  {bar.line()}")
            report = _write(options.output, results)
    found = tuple(Bar(**bar) for content in results.values() for bar in content["bars"])
    return Outcome(results=results, bars=found, report=report)


def resized(recipe: Recipe, size: Size, *, seed: int) -> Recipe:
    """The recipe with as many epochs and images as are measured, and another seed."""
    fit = recipe.fit.model_copy(update={"seed": seed, "epochs": size.epochs or recipe.fit.epochs})
    data = recipe.data
    if size.images is not None:
        data = data.model_copy(update={"limit": size.images})
    return recipe.model_copy(update={"fit": fit, "data": data})


def _recipe(
    name: str,
    options: Options,
    machine: Mapping[str, Any],
    interpreters: Mapping[str, Path | str],
    scratch: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    recipe = recipe_files.load(name)
    size = {"usual": USUAL, "quick": QUICK, "full": FULL}[options.size][name]
    say(f"{name}: reading the images")
    root, real = inputs.data_root(recipe, scratch / name)
    first = resized(recipe, size, seed=0)
    given = inputs.prepare(first, scratch / name / "images", root=root, real=real)
    parameters = count_parameters(build(recipe.model, image=recipe.data.image, classes=given.classes)).total
    taking_part = [peer for peer in MODULES if peer == STRIDE or (peer in options.peers and peer not in size.left_out)]
    entries: list[Entry] = []
    for seed in range(size.seeds):
        names = [peer for peer in taking_part if seed == 0 or peer in (STRIDE, KERAS)]
        seeded = resized(recipe, size, seed=seed)
        contenders = []
        for peer in names:
            entry = Entry(peer, seed)
            entries.append(entry)
            interpreter = interpreters[peer]
            if isinstance(interpreter, str):
                entry.problem = interpreter
                continue
            contenders.append(_contender(entry, seeded, given, root, interpreter, scratch / name / f"{peer}-{seed}"))
        say(f"{name}, seed {seed}: {', '.join(names)}")
        hold(contenders, parameters=parameters, images=given.train, say=say)
    return _content(recipe, first, options, machine, given, parameters, [entry.to_json() for entry in entries])


def _contender(
    entry: Entry, recipe: Recipe, given: inputs.Inputs, root: Path, interpreter: Path, scratch: Path
) -> Contender:
    scratch.mkdir(parents=True)
    precision = "bf16-mixed" if entry.name == BF16 else "32-true"
    job = inputs.write_job(
        scratch / "job.json", recipe, given, threads=THREADS, precision=precision, scratch=scratch / "written"
    )
    # The bare step shares Stride's home, and so its plan.
    home = scratch.with_name(f"{STRIDE}-{entry.seed}") / "home"
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("STRIDE_", "MLFLOW_", "RAY_"))}
    return Contender(
        entry,
        [str(interpreter), "-m", f"benchmarks.training.peers.{MODULES[entry.name]}", str(job)],
        environment={
            **kept,
            "STRIDE_HOME": str(home),
            "STRIDE_DATA": str(root),
            "STRIDE_DEVICE": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": str(THREADS),
            "KERAS_BACKEND": "tensorflow",
            "KERAS_HOME": str(scratch / "keras"),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "PYTHONPATH": str(ROOT),
        },
        log=scratch / "log",
        directory=scratch,
        epoch_s=EPOCH_S,
    )


def _content(
    recipe: Recipe,
    fitted: Recipe,
    options: Options,
    machine: Mapping[str, Any],
    given: inputs.Inputs,
    parameters: int,
    entries: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    published = recipe.published.test_accuracy
    rows = [row for name in MODULES if (row := summarise(entries, name, published=published)) is not None]
    bars = judge(
        recipe.name,
        entries,
        data_bytes=given.bytes,
        real=given.real,
        whole=fitted.fit.epochs == recipe.fit.epochs and fitted.data.limit == recipe.data.limit,
        published=published,
    )
    if options.size == "quick" and any(row.name == STRIDE for row in rows):  # it ran, and that is all that it says
        short = "a quick run is too short to judge"
        bars = [bar if bar.held is None else replace(bar, held=None, found=f"{bar.found}; {short}") for bar in bars]
    versions: dict[str, str] = {"Python": platform.python_version()}
    for entry in entries:
        versions |= entry["ready"].get("versions", {})
    return {
        "command": options.command,
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": dict(machine),
        "versions": versions,
        "setting": {
            "real": given.real,
            "fingerprint": given.fingerprint,
            "train": given.train,
            "bytes": given.bytes,
            "batch_size": fitted.fit.batch_size,
            "epochs": fitted.fit.epochs,
            "recipe_epochs": recipe.fit.epochs,
            "threads": THREADS,
            "parameters": parameters,
            "published": published,
        },
        "rows": [row.to_json() for row in rows],
        "bars": [asdict(bar) for bar in bars],
        "losses": losses(rows),
        "entries": list(entries),
    }


def _interpreters(options: Options, say: Callable[[str], None]) -> dict[str, Path | str]:
    """Each contender's interpreter, or why it has none."""
    peers: Path | str = "not needed"
    if any(peer in ELSEWHERE for peer in options.peers):
        try:
            peers = environments.python("training", say=say)
        except environments.NoEnvironment as error:
            say(f"error: {error.message}")
            peers = error.message
    return {name: peers if name in ELSEWHERE else Path(sys.executable) for name in MODULES}


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": psutil.virtual_memory().total / 1e9,
        "system": f"{platform.system()} {platform.release()}",
    }


def _write(directory: Path, results: Mapping[str, Any]) -> Path:
    """results.json with these recipes in the place of their former sections, and RESULTS.md from all of it."""
    directory.mkdir(parents=True, exist_ok=True)
    kept, report = directory / "results.json", directory / "RESULTS.md"
    former: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    sections = {name: {**former, **results}[name] for name in USUAL if name in {**former, **results}}
    for path, text in ((kept, json.dumps(sections, indent=1) + "\n"), (report, markdown(sections))):
        staged = path.with_suffix(f".{os.getpid()}-{time.monotonic_ns()}")
        staged.write_text(text)
        staged.replace(path)
    return report


def _chosen(option: str, given: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return known
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise RequestError(f"{option} {name!r} is not known; use one or more of {', '.join(known)}.")
    if not names:
        raise RequestError(f"{option} is empty; use one or more of {', '.join(known)}.")
    return tuple(name for name in known if name in names)
