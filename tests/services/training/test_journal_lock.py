from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from services.training.journal_lock import Busy, acquire


def test_a_second_one_is_refused_at_once_and_says_what_to_do(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    started = time.monotonic()
    with acquire(directory, create=True), pytest.raises(Busy, match=r"in use by another process.*stride sync"):
        acquire(directory, create=True)
    assert time.monotonic() - started < 1
    acquire(directory, create=False).close()


def test_a_second_one_may_wait(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    first = acquire(directory, create=True)
    threading.Timer(0.3, first.close).start()
    acquire(directory, create=False, wait_s=20).close()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    code = "import sys, pathlib, time; from services.training.journal_lock import acquire\n"
    code += "held = acquire(pathlib.Path(sys.argv[1]), create=True); print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(Busy):
        acquire(tmp_path / "run", create=False)
    process.kill()
    process.wait()
    process.stdout.close()
    acquire(tmp_path / "run", create=False).close()


def test_a_journal_that_is_deleted_while_it_is_waited_for_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    first = acquire(directory, create=True)

    def delete() -> None:
        time.sleep(0.2)
        shutil.rmtree(directory)
        first.close()

    threading.Thread(target=delete).start()
    with pytest.raises(FileNotFoundError):
        acquire(directory, create=False, wait_s=20)


def test_a_journal_that_is_deleted_between_its_making_and_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, make = tmp_path / "run", Path.mkdir

    def make_and_lose(path: Path, **options: bool) -> None:
        make(path, **options)
        monkeypatch.undo()
        path.rmdir()  # as whoever had it last does

    monkeypatch.setattr(Path, "mkdir", make_and_lose)
    acquire(directory, create=True).close()
    assert directory.is_dir()


def test_what_is_not_there_is_not_made_unless_it_is_to_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        acquire(tmp_path / "run", create=False)
    assert not (tmp_path / "run").exists()
