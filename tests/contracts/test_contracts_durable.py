"""contracts.durable: what a write that fails, or is killed, leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contracts import durable


def test_a_file_is_replaced_whole_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    durable.write(path, b"old")
    durable.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert [item.name for item in tmp_path.iterdir()] == ["state.json"]


def test_a_secret_is_its_owners_alone_even_where_a_killed_write_left_a_file_that_was_not(tmp_path: Path) -> None:
    path = tmp_path / "token"
    (tmp_path / ".token.new").write_text("for everybody")
    durable.write(path, b"secret", mode=0o600)
    assert oct(path.stat().st_mode)[-3:] == "600"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "state.json"
    durable.write(path, b"old")

    def full(*_: object) -> None:  # a disk cannot be filled in a test
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        durable.write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["state.json"]


def test_content_and_name_are_flushed_before_the_write_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[str, bool]] = []
    fsync = os.fsync

    def see(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        flushed.append((name, (tmp_path / "state.json").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", see)
    durable.write(tmp_path / "state.json", b"new")
    assert flushed == [(".state.json.new", False), (tmp_path.name, True)]


def test_a_writer_that_is_killed_leaves_one_content_or_the_other(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    code = (
        "import itertools, sys; from pathlib import Path; from contracts import durable\n"
        "for number in itertools.count():\n"
        "    durable.write(Path(sys.argv[1]), (str(number % 10) * 100_000).encode())\n"
        "    number == 20 and print('writing', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        writer.send_signal(signal.SIGKILL)
    content = path.read_bytes()
    assert len(content) == 100_000
    assert len(set(content)) == 1


def test_where_two_directories_cannot_be_exchanged_a_failed_move_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_exchange", lambda *_: False)  # as on systems without renameat2
    old, new = tmp_path / "set", tmp_path / "staged"
    for path, text in ((old, "old"), (new, "new")):
        path.mkdir()
        (path / "file").write_text(text)
    with pytest.raises(OSError, match="No such file"):
        durable.replace_directory(tmp_path / "never made", old)
    assert (old / "file").read_text() == "old"
    durable.replace_directory(new, old)
    assert (old / "file").read_text() == "new"
    assert [item.name for item in tmp_path.iterdir()] == ["set"]
