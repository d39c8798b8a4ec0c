from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from contracts.errors import AlreadyFitting, FitError
from pipelines.sweeps import ledger
from pipelines.sweeps.ledger import Ledger


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    written = Ledger(tmp_path / "sweep" / "trials.jsonl")
    for lr in (0.1, 0.2, 0.3, 0.4):
        written.begin({"optimizer.lr": lr}, {"optimizer.lr": lr + 1e-9})
    written.epoch(0, 1, 0.5)
    written.epoch(0, 2, 0.7)
    written.end(0, "finished", value=0.6, run_id="r0")
    written.epoch(1, 1, 0.4)
    written.end(1, "stopped")
    written.end(2, "failed", problem="the loss is not finite.")
    read = Ledger(written.path)
    assert read.trials == written.trials
    assert [trial.state for trial in read.trials.values()] == ["finished", "stopped", "failed", "running"]
    assert [trial.number for trial in read.over()] == [0, 1, 2]
    assert [trial.values for trial in read.open()] == [{"optimizer.lr": 0.4}]
    assert read.begin({}, {}).number == 4


def test_a_finished_trial_is_worth_what_was_kept_and_another_one_its_best_epoch(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "trials.jsonl")
    trial = book.begin({}, {})
    assert trial.best("max") is None
    book.epoch(0, 1, 0.8)
    book.epoch(0, 2, 0.7)
    assert (trial.best("max"), trial.best("min")) == (0.8, 0.7)
    book.end(0, "finished", value=0.75, run_id="r")
    assert trial.best("max") == 0.75


def test_a_line_that_was_cut_off_is_left_out_and_not_continued(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "trials.jsonl")
    book.begin({"fit.epochs": 1}, {"fit.epochs": 1})
    whole = book.path.read_bytes()
    book.path.write_bytes(whole + b'{"trial": 0, "event": "epo')
    cut = Ledger(book.path)
    assert book.path.read_bytes() == whole
    cut.epoch(0, 1, 0.5)
    assert Ledger(book.path).trials[0].epochs == {1: 0.5}


@pytest.mark.parametrize(
    "line",
    [
        b"\0\0\0\n",
        b'{"trial": 0, "event": "epo\n',
        b"[]\n",
        b'{"trial": 7, "event": "epoch", "epoch": 1, "value": 1}\n',
        b'{"trial": 0}\n',
    ],
)
def test_a_damaged_line_is_named_with_its_file_and_nothing_is_written(tmp_path: Path, line: bytes) -> None:
    book = Ledger(tmp_path / "trials.jsonl")
    book.begin({"fit.epochs": 1}, {"fit.epochs": 1})
    spoilt = book.path.read_bytes() + line
    book.path.write_bytes(spoilt + b'{"trial": 0, "ev')
    with pytest.raises(FitError) as told:
        Ledger(book.path)
    assert told.value.message == (
        f"sweep file '{book.path}' is damaged (its line 2 is none that a sweep writes), a whole one was expected; "
        "bring it back from a backup, or give --force, which begins the sweep anew; its runs stay in MLflow."
    )
    assert book.path.read_bytes().startswith(spoilt)


def test_one_process_runs_a_sweep(tmp_path: Path) -> None:
    held = "import sys; from pathlib import Path; from pipelines.sweeps import ledger\n"
    held += "with ledger.alone(Path(sys.argv[1]), 'it'): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyFitting, match="sweep of 'x': another"), ledger.alone(tmp_path, "sweep of 'x'"):
            pass
        other.communicate()
    with ledger.alone(tmp_path, "sweep of 'x'"):
        pass
