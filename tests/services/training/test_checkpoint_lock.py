from __future__ import annotations

import os
from pathlib import Path

import pytest

from services.training import checkpoint_lock
from services.training.checkpoint_lock import Held, take


def test_one_at_a_time_holds_it_and_the_others_are_told_who(tmp_path: Path) -> None:
    with take(tmp_path / "deep" / "er"):
        with pytest.raises(Held) as caught:
            take(tmp_path / "deep" / "er")
        assert caught.value.holder == str(os.getpid())
    with take(tmp_path / "deep" / "er"):
        pass


def test_a_lock_whose_file_is_gone_locks_nothing(tmp_path: Path) -> None:
    path = tmp_path / checkpoint_lock.NAME
    with path.open("a+") as file:
        path.unlink()  # by the one that had it, before we could lock it
        assert not checkpoint_lock._locked(file)
        with take(tmp_path):
            assert path.exists()
            with pytest.raises(Held):
                take(tmp_path)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        take(tmp_path / "file" / "below")
