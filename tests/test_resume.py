"""`stride train`, killed and stopped for real: the same command goes on, and ends as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked_fits import FORKS, Machine

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 24


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("STRIDE_", "MLFLOW_"))}
    with subprocess.Popen(
        [sys.executable, "-c", FORKS],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def undisturbed(
    forks: subprocess.Popen[str], tmp_path_factory: pytest.TempPathFactory, migrated_database: Path
) -> dict[str, tuple[Machine, float]]:
    """A fit that nobody stopped, by precision, and its seconds."""
    found = {}
    for precision in ("fp32", "bf16"):
        machine = Machine(forks, tmp_path_factory.mktemp("undisturbed") / "home", migrated_database, precision)
        fit = machine.train()
        assert fit.ended() == 0, fit.said()
        found[precision] = (machine, time.monotonic() - fit.started)
    return found


@pytest.fixture
def machine(forks: subprocess.Popen[str], tmp_path: Path, migrated_database: Path) -> Iterator[Machine]:
    made = Machine(forks, tmp_path / "machine", migrated_database, "fp32")
    yield made
    if made.fitting is not None and made.fitting.code is None:  # the test has failed
        made.fitting.stop(signal.SIGKILL)


def check_same(machine: Machine, undisturbed: tuple[Machine, float]) -> None:
    """One finished run with every epoch once, the weights of a fit that nobody stopped, and nothing left over."""
    other = undisturbed[0]
    (run,), (expected,) = machine.runs(), other.runs()
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    assert machine.weights(run.info.run_id) == other.weights(expected.info.run_id)
    course = machine.course(run.info.run_id)
    assert [step for step, _ in course["validation/loss"]] == list(range(1, EPOCHS + 1))
    assert course == other.course(expected.info.run_id)
    assert machine.result()["test_accuracy"] == other.result()["test_accuracy"]
    assert list((machine.home / "checkpoints").iterdir()) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_after_twenty_kills_at_random_moments_the_run_is_what_it_would_have_been(
    precision: str,
    forks: subprocess.Popen[str],
    undisturbed: dict[str, tuple[Machine, float]],
    tmp_path: Path,
    migrated_database: Path,
) -> None:
    moments, kills, began, resumed = random.Random(precision), 0, 0, 0
    whole_s = undisturbed[precision][1]
    while kills < 10:  # twenty in the two precisions together
        began += 1
        machine = Machine(forks, tmp_path / str(began), migrated_database, precision)
        while True:
            fit = machine.train()
            # Moments of a fit that begins, goes on and is reported; the one that ends before its moment is the result
            time.sleep(moments.uniform(0, whole_s))
            code = fit.stop(signal.SIGKILL)
            if code == 0:
                break
            assert code == -signal.SIGKILL, fit.said()
            kills += 1
            if kills >= 10:
                fit = machine.train()
                assert fit.ended() == 0, fit.said()
                break
        check_same(machine, undisturbed[precision])
        resumed += machine.result()["resumed"]
    assert resumed >= 2  # some were killed after their first checkpoint, and did go on


@pytest.mark.timeout(600)
def test_a_process_of_the_command_itself_is_killed_and_goes_on(
    machine: Machine, undisturbed: dict[str, tuple[Machine, float]]
) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "train", str(machine.recipe), "--json"]
    environment = {**os.environ, **machine.environment}
    for place in ("epoch 3/", "epoch 14/"):
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert any(line.startswith(place) for line in process.stderr)
            process.kill()
        assert machine.checkpoints()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    (machine.home / "output").write_text(done.stdout)
    assert machine.result()["resumed"] == 2
    assert "goes on after epoch" in done.stderr
    check_same(machine, undisturbed["fp32"])


@pytest.mark.timeout(300)
def test_sigterm_and_ctrl_c_save_end_the_run_as_killed_and_exit_with_their_codes(
    machine: Machine, undisturbed: dict[str, tuple[Machine, float]]
) -> None:
    for number, code, place in ((signal.SIGTERM, 143, "epoch 5/"), (signal.SIGINT, 130, "epoch 12/")):
        fit = machine.train()
        fit.wait_for(place)
        assert fit.stop(number) == code, fit.said()
        assert "stopped and saved at" in fit.said()
        (run,) = machine.runs()
        assert run.info.status == "KILLED"
        assert 1 <= len(machine.checkpoints()) <= 2
    fit = machine.train()
    fit.wait_for("goes on after epoch")
    fit.wait_for("epoch 20/")
    (run,) = machine.runs()
    assert run.info.status == "RUNNING"
    assert fit.ended() == 0, fit.said()
    assert machine.result()["resumed"] == 2
    check_same(machine, undisturbed["fp32"])


@pytest.mark.timeout(300)
def test_a_damaged_checkpoint_falls_back_and_two_of_them_begin_anew(
    machine: Machine, undisturbed: dict[str, tuple[Machine, float]]
) -> None:
    for damaged, wanted in ((1, "the one before it is taken"), (2, "the fit starts anew")):
        fit = machine.train()
        fit.wait_for("epoch 10/")
        while len(machine.checkpoints()) < 2:
            time.sleep(0.01)
        fit.stop(signal.SIGKILL)
        kept = machine.checkpoints()
        for path in kept[-damaged:]:
            path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
        fit = machine.train()
        fit.wait_for(wanted)
        fit.wait_for("images/s")
        assert ("goes on after epoch" in fit.said()) == (damaged == 1)
        assert ("epoch 1/" in fit.said()) == (damaged == 2)
        fit.stop(signal.SIGKILL)
    assert machine.train().ended() == 0
    check_same(machine, undisturbed["fp32"])


@pytest.mark.timeout(300)
def test_two_at_once_are_refused_another_recipe_is_not_and_force_begins_anew(machine: Machine) -> None:
    fit = machine.train()
    fit.wait_for("epoch 2/")
    command = [sys.executable, "-m", "pipelines.cli", "train", str(machine.recipe)]
    environment = {**os.environ, **machine.environment}
    second = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    fit.send(signal.SIGSTOP)  # so that it is still there when the second one asks
    try:
        _, said = second.communicate(timeout=120)
    finally:
        fit.send(signal.SIGCONT)
    assert second.returncode == 2
    assert f"error: recipe 'hardy': process {fit.pid} is fitting the same recipe, data and code; wait for it" in said
    assert fit.stop(signal.SIGKILL) == -signal.SIGKILL
    other = machine.train("--set", "fit.seed=1", "--set", "fit.epochs=1", "--set", "fit.early_stopping=null")
    assert other.ended() == 0, other.said()
    assert "goes on after epoch" not in other.said()
    forced = machine.train("--force", "--set", "fit.epochs=24")
    assert forced.ended() == 0, forced.said()
    assert "goes on after epoch" not in forced.said()
    states = sorted((run.info.status, len(machine.course(run.info.run_id)["lr"])) for run in machine.runs())
    assert states[:2] == [("FINISHED", 1), ("FINISHED", EPOCHS)]
    assert [status for status, _ in states[2:]] == ["KILLED"]  # the run that was begun first, and will not go on


@pytest.mark.timeout(300)
def test_a_full_disk_costs_the_checkpoints_and_neither_the_fit_nor_its_weights(
    machine: Machine, undisturbed: dict[str, tuple[Machine, float]]
) -> None:
    disk = machine.home / "checkpoints"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "none", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        fit = machine.train()
        assert fit.ended() == 0, fit.said()
        assert fit.said().count("could not be written: No space left on device; there is none yet") == 1
        assert "checkpoints could not be written (No space left on device): killed, the fit would have" in fit.said()
        (run,) = machine.runs()
        assert "No space left on device" in run.data.tags["stride.checkpoints"]
        check_same(machine, undisturbed["fp32"])
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
