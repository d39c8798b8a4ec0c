from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts.errors import FitError
from contracts.recipe import Recipe
from services.training.checkpoints import Checkpoints
from services.training.fit_state import FitState
from services.training.networks import ServedGraph, build
from services.training.stopping import Stopping, Terminated
from tests.services.training.plans import cpu_plan


@pytest.fixture(autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """As on a terminal: what runs in a shell's background is told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def state(tiny_recipe: Recipe) -> FitState:
    torch.manual_seed(0)
    graph = ServedGraph(
        build(tiny_recipe.model, image=tiny_recipe.data.image, classes=2), output="softmax", mean=(0.0,), std=(1.0,)
    )
    plan = cpu_plan()
    return FitState.begin(graph, tiny_recipe, plan, batches=10)


def keep(directory: Path, **given: Any) -> Checkpoints:
    return Checkpoints(directory, "ours", **{"every_s": 60.0, **given})


def save(kept: Checkpoints, state: FitState, batch: int) -> Path:
    """Save the state as it is after a batch, and wait until it is written."""
    state.batch = batch
    kept.save(state)
    kept._wait()
    return kept._paths()[0]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """While it is entered the kernel takes no more than `size` bytes for a file, as a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_newest_is_taken_and_two_are_kept(tmp_path: Path, state: FitState) -> None:
    with keep(tmp_path, facts={"run_id": "r"}) as kept:
        assert kept.newest() is None
        for batch in (1, 2, 3):
            save(kept, state, batch)
        assert len(kept._paths()) == 2
        newest = kept.newest()
    assert newest is not None
    assert (newest.epoch, newest.batch, newest.state["facts"]) == (0, 3, {"run_id": "r"})


def test_the_end_of_an_epoch_is_newer_than_its_last_batch(tmp_path: Path, state: FitState) -> None:
    with keep(tmp_path) as kept:
        save(kept, state, 10)
        state.history.append({"validation/loss": 1.0})
        save(kept, state, 0)
        newest = kept.newest()
    assert newest is not None
    assert (newest.epoch, newest.batch) == (1, 0)


def test_a_damaged_newest_falls_back_to_the_one_before_with_a_warning(
    tmp_path: Path, state: FitState, caplog: pytest.LogCaptureFixture
) -> None:
    with keep(tmp_path) as kept:
        save(kept, state, 1)
        newest = save(kept, state, 2)
        damage(newest)
        found = kept.newest()
        assert found is not None
        assert found.batch == 1
        assert f"checkpoint {newest} cannot be used: its content does not match its sha256" in caplog.text
        assert caplog.text.rstrip().endswith("the one before it is taken")
        # and what is written from there on counts as the newest
        assert save(kept, state, 1).exists()
        assert not newest.exists()


def test_where_both_are_damaged_the_fit_starts_anew_and_says_so(
    tmp_path: Path, state: FitState, caplog: pytest.LogCaptureFixture
) -> None:
    with keep(tmp_path) as kept:
        damage(save(kept, state, 1))
        damage(save(kept, state, 2))
        assert kept.newest() is None
    assert caplog.text.count("cannot be used") == 2
    assert caplog.text.rstrip().endswith("the fit starts anew")


@contextmanager
def unreadable(*paths: Path) -> Iterator[None]:
    """While it is entered each is a circle of links, which no process may open, not even root's."""
    for path in paths:
        path.rename(path.with_suffix(".aside"))
        path.symlink_to(path.name)
    try:
        yield
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
            path.with_suffix(".aside").rename(path)


def test_a_checkpoint_that_the_disk_does_not_give_is_kept_and_the_one_before_it_taken(
    tmp_path: Path, state: FitState, caplog: pytest.LogCaptureFixture
) -> None:
    with keep(tmp_path) as kept:
        save(kept, state, 1)
        newest = save(kept, state, 2)
        with unreadable(newest):
            found = kept.newest()
            assert found is not None
            assert found.batch == 1
            assert newest.is_symlink()
            # it is newer than what the fit writes from there on, of which two are kept all the same
            state.batch = 0
            for batch in (1, 1):
                state.step += 1
                save(kept, state, batch)
            assert len(kept._paths()) == 3
        assert f"checkpoint {newest} cannot be read (Too many levels of symbolic links) and is kept" in caplog.text
        found = kept.newest()
        assert found is not None
        assert found.batch == 2


def test_where_none_can_be_read_the_fit_does_not_start_anew(tmp_path: Path, state: FitState) -> None:
    with keep(tmp_path) as kept:
        paths = [save(kept, state, 1), save(kept, state, 2)]
        with unreadable(*paths), pytest.raises(FitError, match=r"none could be read \(Too many levels .*or begin anew"):
            kept.newest()
        assert all(path.exists() for path in paths)
        with unreadable(*paths):
            kept.clear()
            assert kept.newest() is None


def test_a_checkpoint_of_another_fit_is_not_taken(
    tmp_path: Path, state: FitState, caplog: pytest.LogCaptureFixture
) -> None:
    with Checkpoints(tmp_path, "theirs", every_s=60.0) as theirs:
        save(theirs, state, 1)
    with keep(tmp_path) as kept:
        assert kept.newest() is None
    assert "it is of another recipe, data or code" in caplog.text


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".4711.staged").write_bytes(b"half")
    with keep(tmp_path) as kept:
        assert kept.newest() is None
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_warns_once_keeps_the_last_good_one_and_recovers(
    tmp_path: Path, state: FitState, caplog: pytest.LogCaptureFixture
) -> None:
    with keep(tmp_path) as kept:
        good = save(kept, state, 1)
        with no_file_above(1000):
            for batch in (2, 3, 4):
                save(kept, state, batch)
        assert caplog.text.count("could not be written: File too large; the last good one is") == 1
        assert list(tmp_path.iterdir()) == [good]
        found = kept.newest()
        assert found is not None
        assert found.batch == 1
        assert save(kept, state, 5) != good
        assert kept.trouble is not None
        assert kept.trouble.startswith("3 of 5 checkpoints could not be written (File too large)")


def test_a_fit_without_trouble_says_nothing_of_it(tmp_path: Path, state: FitState) -> None:
    with keep(tmp_path) as kept:
        save(kept, state, 1)
        assert kept.trouble is None


def test_a_directory_that_is_not_there_costs_the_checkpoints_and_not_the_fit(
    tmp_path: Path, state: FitState, caplog: pytest.LogCaptureFixture
) -> None:
    with keep(tmp_path / "gone") as kept:
        assert kept.newest() is None
        kept.keep_run(run_id="r")
        kept.save(state)
        kept._wait()
        assert kept.run == {}
        kept.clear()
        kept.finish()
    assert "No such file or directory; there is none yet, and the fit goes on" in caplog.text


def test_within_an_epoch_the_interval_decides_and_after_one_only_the_cost(tmp_path: Path, state: FitState) -> None:
    with keep(tmp_path, every_s=0.2) as kept:
        assert not kept.due()
        assert kept.due(epoch_done=True)
        time.sleep(0.21)
        assert kept.due()
        save(kept, state, 1)
        kept._cost_s = 0.0
        assert not kept.due()
        assert kept.due(epoch_done=True)
        kept._cost_s = 0.01  # 2% of half a second
        assert not kept.due(epoch_done=True)
        kept._last -= 0.5
        assert kept.due(epoch_done=True)


def test_none_is_due_while_one_is_being_written(
    tmp_path: Path, state: FitState, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync
    let: list[bool] = []

    def slow(descriptor: int) -> None:
        while not let:
            time.sleep(0.01)
        real(descriptor)

    with keep(tmp_path, every_s=1e-6, share=1e9) as kept:
        assert kept.due()
        monkeypatch.setattr(os, "fsync", slow)  # a slow disk
        kept.save(state)
        time.sleep(0.05)
        assert not kept.due()
        let.append(True)
        kept._wait()
        assert kept.due()


def test_a_signal_is_saved_before_it_is_raised(
    tmp_path: Path, state: FitState, caplog: pytest.LogCaptureFixture
) -> None:
    stopping = Stopping()

    def loop() -> None:
        with stopping, keep(tmp_path, stopping=stopping) as kept, kept.running():
            state.batch = 4
            assert not kept.due()
            os.kill(os.getpid(), signal.SIGTERM)
            assert kept.due()
            kept.save(state)

    with pytest.raises(Terminated):
        loop()
    with keep(tmp_path) as kept:
        found = kept.newest()
    assert found is not None
    assert found.batch == 4
    assert "stopped and saved at epoch 1, batch 4; the same command goes on from there" in caplog.text


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_validation_is_left_at_once_with_the_state_before_it(
    number: int, error: type[BaseException], tmp_path: Path, state: FitState
) -> None:
    stopping = Stopping()
    reached: list[str] = []

    def loop() -> None:
        with stopping, keep(tmp_path, stopping=stopping) as kept, kept.running():
            state.batch = 10
            with kept.at_once(state):
                os.kill(os.getpid(), number)
                reached.append("the end of validation")

    with pytest.raises(error):
        loop()
    assert reached == []
    with keep(tmp_path) as kept:
        found = kept.newest()
    assert found is not None
    assert found.batch == 10


def test_another_error_in_validation_saves_nothing(tmp_path: Path, state: FitState) -> None:
    with keep(tmp_path) as kept:
        with pytest.raises(ValueError, match="its own"), kept.at_once(state):
            raise ValueError("its own")
        assert kept.newest() is None


def test_the_run_is_remembered_and_forgotten(tmp_path: Path, state: FitState) -> None:
    with keep(tmp_path) as kept:
        assert kept.run == {}
        kept.keep_run(fit="f")
        kept.keep_run(run_id="r")
        save(kept, state, 1)
        assert kept.run == {"fit": "f", "run_id": "r"}
        kept.clear()
        assert (kept.run, kept.newest()) == ({}, None)
        (tmp_path / "run.json").write_text('{"run')
        assert kept.run == {}


def test_a_finished_fit_leaves_nothing(tmp_path: Path, state: FitState) -> None:
    directory = tmp_path / "fit"
    directory.mkdir()
    with keep(directory) as kept:
        save(kept, state, 1)
        kept.finish()
    assert not directory.exists()


def test_what_it_says_about_a_full_disk_is_true_of_a_real_one(
    tmp_path: Path, state: FitState, caplog: pytest.LogCaptureFixture, tiny_disk: Path
) -> None:
    with caplog.at_level(logging.WARNING), keep(tiny_disk) as kept:
        good = save(kept, state, 1)
        (tiny_disk / "other").write_bytes(b"x" * (shutil.disk_usage(tiny_disk).free - 4096))
        save(kept, state, 2)
        assert f"could not be written: No space left on device; the last good one is {good.name}" in caplog.text
        assert kept.newest() is not None


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; skips where this process may not mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)
