"""Real processes: on their core, with all that they start, counted and ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.serving.family import Family, Unfit, on_core

# A child in a session of its own, without the token: found by its parent alone, as programs are that clean up.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], env={{}}, start_new_session=True)
print("ready", flush=True)
{behind}
"""
BUSY = "sum(range(60_000_000))\nimport time; time.sleep(60)"
CORE = max(os.sched_getaffinity(0))
Start = Callable[..., Family]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    families: list[Family] = []

    def run(code: str, *, talks: bool = False) -> Family:
        environment = {"PATH": os.environ["PATH"]}
        command = [sys.executable, "-u", "-c", code]
        log = tmp_path / "log"
        families.append(Family(command, name="it", core=CORE, environment=environment, log=log, talks=talks))
        return families[-1]

    yield run
    for family in families:
        family.end()


def in_log(family: Family, text: str) -> Callable[[], bool]:
    return lambda: text in family.log.read_text()


def test_all_of_a_family_is_on_its_core_is_counted_and_is_ended(start: Start) -> None:
    family = start(PARENT.format(child=BUSY, behind="time.sleep(60)"))
    assert family.wait(in_log(family, "ready"), within_s=20) < 20
    family.wait(lambda: family.cpu_s() > 0.3, within_s=60)  # the child's; the parent sleeps
    members = family.members()
    assert len(members) == 2
    assert {tuple(process.cpu_affinity() or ()) for process in members} == {(CORE,)}
    assert family.memory() > 2_000_000
    family.end()
    assert [process for process in members if psutil.pid_exists(process.pid) and process.status() != "zombie"] == []
    assert not family.alive


def test_processor_time_of_a_child_that_has_ended_stays(start: Start) -> None:
    family = start(PARENT.format(child="sum(range(60_000_000))", behind="child.wait()\nprint('gone')\ntime.sleep(60)"))
    family.wait(in_log(family, "gone"), within_s=60)
    spent = family.cpu_s()
    assert spent > 0.2
    assert family.cpu_s() >= spent


def test_one_that_ends_before_it_is_ready_says_so_with_its_log(start: Start) -> None:
    family = start("raise SystemExit('no such model')")
    with pytest.raises(Unfit, match=r"it ended before it was ready; its log ends:\n +no such model"):
        family.wait(lambda: False, within_s=20)


def test_one_that_never_gets_ready_is_not_waited_for_longer(start: Start) -> None:
    family = start("import time; time.sleep(60)")
    begun = time.monotonic()
    with pytest.raises(Unfit, match="not ready in 0 s"):
        family.wait(lambda: False, within_s=0.3)
    assert time.monotonic() - begun < 5


def test_one_that_talks_is_asked_in_lines(start: Start) -> None:
    family = start("import sys\nfor line in sys.stdin: print(line.strip()[::-1])", talks=True)
    assert family.ask("abc") == "cba\n"
    family.end()
    with pytest.raises(Unfit):
        family.ask("abc")


def test_a_child_that_ignores_sigterm_is_killed(start: Start) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    family = start(PARENT.format(child=stubborn, behind="time.sleep(60)"))
    family.wait(in_log(family, "ready"), within_s=20)
    members = family.members()
    assert len(members) == 2
    time.sleep(0.5)  # until it ignores it
    family.end()
    assert [process for process in members if psutil.pid_exists(process.pid) and process.status() != "zombie"] == []


def test_the_affinity_comes_back() -> None:
    before = os.sched_getaffinity(0)
    with on_core(CORE):
        assert os.sched_getaffinity(0) == {CORE}
    assert os.sched_getaffinity(0) == before
