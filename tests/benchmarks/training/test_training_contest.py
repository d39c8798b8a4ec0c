"""Real processes that take turns; each is a few lines that stand here."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from benchmarks.training.contest import Contender, Entry, hold

ROOT = Path(__file__).parents[3]

GOOD = """
from benchmarks.training.turns import Turns
turns = Turns()
print("this is no line of the protocol")
turns.ready(parameters=10, images=100)
for epoch in range(3):
    with open("order", "a") as file: file.write(NAME + " ")
    turns.epoch({"train_loss": 1.0 / (epoch + 1)}, judge=lambda: 0.5)
turns.done(test_accuracy=0.75)
"""
DYING = """
import sys
from benchmarks.training.turns import Turns
turns = Turns()
turns.ready(parameters=10, images=100)
turns.epoch({}, judge=lambda: 0.5)
sys.exit("out of luck")
"""
HANGING = """
import time
from benchmarks.training.turns import Turns
turns = Turns()
turns.ready(parameters=10, images=100)
time.sleep(60)
"""
OTHER = """
from benchmarks.training.turns import Turns
Turns().ready(parameters=11, images=100)
"""
BROKEN = "raise SystemExit('no such module')"
BUSY = """
import threading, time
from benchmarks.training.turns import Turns
turns = Turns()
def count():
    while True:
        with open("ticks", "a") as file: file.write(".")
        time.sleep(0.01)
threading.Thread(target=count, daemon=True).start()
turns.ready(parameters=10, images=100)
turns.epoch({}, judge=lambda: 0.5)
turns.done(test_accuracy=0.5)
"""

Make = Callable[..., Contender]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def contender(name: str, code: str, *, epoch_s: float = 20) -> Contender:
        return Contender(
            Entry(name, 0),
            [sys.executable, "-c", f"NAME = {name!r}\n{code}"],
            environment={**os.environ, "PYTHONPATH": str(ROOT)},
            log=tmp_path / f"{name}.log",
            directory=tmp_path,
            epoch_s=epoch_s,
        )

    return contender


def silent(_: str) -> None: ...


def test_contenders_take_turns_epoch_by_epoch_in_rotating_order(make: Make, tmp_path: Path) -> None:
    contenders = [make("a", GOOD), make("b", GOOD)]
    hold(contenders, parameters=10, images=100, say=silent)
    assert (tmp_path / "order").read_text().split() == ["a", "b", "b", "a", "a", "b"]
    for contender in contenders:
        entry = contender.entry
        assert entry.problem is None
        assert [epoch["epoch"] for epoch in entry.epochs] == [1, 2, 3]
        assert entry.epochs[2]["train_loss"] == pytest.approx(1 / 3)
        assert entry.epochs[0]["test_accuracy"] == 0.5
        assert 0 < entry.epochs[0]["seconds"] < 20
        assert entry.done["test_accuracy"] == 0.75
        assert entry.done["peak_bytes"] > entry.anonymous_bytes > 2_000_000
        assert entry.to_json()["anonymous_bytes"] == entry.anonymous_bytes
        assert entry.ready["seconds"] > 0


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (DYING, "it ended with 1 (out of luck)"),
        (HANGING, "it said nothing for 2 s"),
        (OTHER, "it has 11 parameters, the recipe has 10"),
        (BROKEN, "it ended with 1 (no such module)"),
    ],
)
def test_one_that_fails_is_recorded_and_the_others_go_on(make: Make, code: str, said: str) -> None:
    bad, good = make("bad", code, epoch_s=2), make("good", GOOD)
    hold([bad, good], parameters=10, images=100, say=silent)
    assert bad.entry.problem == said
    assert not bad.entry.done
    assert good.entry.done["test_accuracy"] == 0.75


def test_nobody_computes_while_it_is_not_their_turn(make: Make, tmp_path: Path) -> None:
    busy = make("busy", BUSY)
    busy.start(parameters=10, images=100)
    ticks = tmp_path / "ticks"
    time.sleep(0.1)
    before = len(ticks.read_text())
    time.sleep(0.5)
    assert len(ticks.read_text()) == before
    while not busy.over:
        busy.take_turn()
    assert len(ticks.read_text()) > before


def test_nothing_is_left_running_when_a_contest_is_cut_off(make: Make) -> None:
    contender = make("good", GOOD)

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    started: list[int] = []
    begin = contender.start

    def start(**options: int) -> None:
        begin(**options)
        assert contender._process is not None
        started.append(contender._process.pid)

    contender.start = start  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        hold([contender], parameters=10, images=100, say=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own way is Linux'")
def test_no_stopped_contender_outlives_a_benchmark_that_was_killed(tmp_path: Path) -> None:
    code = f"""
import os, sys
from pathlib import Path
from benchmarks.training.contest import Contender, Entry
contender = Contender(Entry("good", 0), [sys.executable, "-c", {GOOD!r}], environment=dict(os.environ),
                      log=Path("log"), directory=Path.cwd(), epoch_s=20)
contender.start(parameters=10, images=100)
print(contender._process.pid, flush=True)
sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdin=pipe, stdout=pipe) as benchmark:
        assert benchmark.stdout is not None
        contender = psutil.Process(int(benchmark.stdout.readline()))
        end = time.monotonic() + 10
        while contender.status() != psutil.STATUS_STOPPED and time.monotonic() < end:
            time.sleep(0.01)
        assert contender.status() == psutil.STATUS_STOPPED
        benchmark.kill()
        benchmark.wait()
    with contextlib.suppress(psutil.NoSuchProcess):
        contender.wait(timeout=10)
    assert not contender.is_running() or contender.status() == psutil.STATUS_ZOMBIE
