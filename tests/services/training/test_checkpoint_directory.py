from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from contracts.errors import AlreadyFitting, RecipeError
from contracts.recipe import Recipe
from services.training import checkpoint_directory
from services.training.checkpoint_directory import discard_checkpoints, identity_of, open_checkpoints, seconds_between
from services.training.data.dataset import Dataset

_HOLD = """
import sys, time
from services.training.checkpoint_directory import open_checkpoints
with open_checkpoints("digits", "a" * 64):
    print("open", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder() -> subprocess.Popen[str]:
    """Another process that has the checkpoints of the fit `aaa…` open."""
    process = subprocess.Popen([sys.executable, "-c", _HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_a_second_process_is_told_who_is_at_it_and_a_killed_one_lets_go(holder: subprocess.Popen[str]) -> None:
    wanted = (
        rf"^recipe 'digits': process {holder.pid} is fitting the same recipe, data and code; wait for it, or end it"
    )
    try:
        with pytest.raises(AlreadyFitting, match=wanted), open_checkpoints("digits", "a" * 64):
            pass
        with open_checkpoints("digits", "b" * 64) as other:
            assert other.newest() is None
        discard_checkpoints("a" * 64)  # not while somebody is at it
        assert (Path(os.environ["STRIDE_HOME"]) / "checkpoints" / ("a" * 32)).is_dir()
    finally:
        end(holder)
    with open_checkpoints("digits", "a" * 64) as kept:
        assert kept.newest() is None


def test_a_lock_that_was_removed_with_its_directory_is_taken_anew(home: Path) -> None:
    with open_checkpoints("digits", "a" * 64) as kept:
        kept.finish()
        with open_checkpoints("digits", "a" * 64):
            pass


def test_a_home_that_cannot_be_written_costs_the_checkpoints_alone(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.mkdir()
    (home / "checkpoints").write_text("a file where a directory was expected")
    with open_checkpoints("digits", "a" * 64) as kept:
        assert kept.newest() is None
    assert "cannot be written (" in caplog.text
    assert "a fit that is killed starts anew" in caplog.text


def test_what_a_finished_fit_left_is_discarded(home: Path) -> None:
    with open_checkpoints("digits", "a" * 64) as kept:
        kept.keep_run(run_id="r")
    assert kept.directory.is_dir()
    discard_checkpoints("a" * 64)
    discard_checkpoints("a" * 64)
    assert not kept.directory.exists()


def test_checkpoints_that_nobody_went_on_from_for_a_month_are_removed(home: Path) -> None:
    kept = []
    for letter in "ab":
        with open_checkpoints("digits", letter * 64) as opened:
            opened.keep_run(run_id="r")
            kept.append(opened.directory)
    old = time.time() - checkpoint_directory._ABANDONED_S - 60
    os.utime(kept[0], (old, old))
    with open_checkpoints("digits", "c" * 64):
        assert [path.exists() for path in kept] == [False, True]


def test_recipe_data_and_device_decide_whose_checkpoints_they_are(
    make_recipe: Callable[..., Recipe], make_dataset: Callable[..., Dataset]
) -> None:
    recipe, dataset = make_recipe(), make_dataset()
    others = [
        (make_recipe(fit={"epochs": 3}), dataset, "cpu"),
        (make_recipe(model_name="another"), dataset, "cpu"),
        (recipe, replace(dataset, fingerprint="0" * 64), "cpu"),
        (recipe, dataset, "cuda"),
    ]
    assert identity_of(recipe, dataset, "cpu") == identity_of(make_recipe(gate={"min_accuracy": 0.5}), dataset, "cpu")
    assert len({identity_of(*other) for other in (*others, (recipe, dataset, "cpu"))}) == 5


def test_other_code_does_not_go_on_from_them(
    tiny_recipe: Recipe, tiny_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity_of(tiny_recipe, tiny_dataset, "cpu")
    monkeypatch.setattr(checkpoint_directory, "code_version", lambda: "0.1.0+000000000000")
    assert identity_of(tiny_recipe, tiny_dataset, "cpu") != before


@pytest.mark.parametrize("given", ["soon", "0", "-5", "nan"])
def test_an_interval_that_is_none_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRIDE_CHECKPOINT_SECONDS", given)
    with pytest.raises(RecipeError, match=rf"^STRIDE_CHECKPOINT_SECONDS is '{given}'; set it to seconds above 0"):
        seconds_between()


def test_the_interval_is_a_minute_unless_it_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seconds_between() == 60
    monkeypatch.setenv("STRIDE_CHECKPOINT_SECONDS", "0.5")
    assert seconds_between() == 0.5
