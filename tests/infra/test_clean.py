"""`make clean` in a checkout of its own, with a docker that only writes down what it is asked."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = """#!/bin/sh
echo "$*" >> "$ASKED"
case "$*" in
    info) exit %d ;;
    *working_dir*) echo "$ELSEWHERE" ;;
    'compose config') echo 'name: stride' ;;
    'volume ls'*) grep -q -- --volumes "$ASKED" || echo '%s' ;;
    'system df'*) echo 'stride_artifacts 12.5MB' ;;
esac
"""
Clean = Callable[..., tuple[int, str]]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What was made in it: an environment whose `stride` writes down that it was asked, a cache, and runs."""
    directory = tmp_path / "checkout"
    for name in (".stride/artifacts", ".venv/bin", ".ruff_cache", "infra", "pipelines"):
        (directory / name).mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", directory)
    shutil.copy(ROOT / "infra/clean.sh", directory / "infra")
    (directory / ".stride/mlflow.db").write_bytes(bytes(300_000))
    (directory / ".venv/bin/stride").write_text('#!/bin/sh\necho "stride $*" >> "$ASKED"\n')
    (directory / ".venv/bin/stride").chmod(0o755)
    return directory


@pytest.fixture
def clean(checkout: Path, tmp_path: Path) -> Clean:
    """Runs `make clean`; its exit code and all that it said. `answer` is typed on a terminal; None: there is none."""

    def run(
        *arguments: str, answer: str | None = None, engine: bool = True, volume: str = "", elsewhere: str = ""
    ) -> tuple[int, str]:
        tools = tmp_path / "tools"
        tools.mkdir(exist_ok=True)
        (tools / "docker").write_text(DOCKER % (0 if engine else 1, volume))
        (tools / "docker").chmod(0o755)
        (tmp_path / "asked").touch()
        terminal, inside = pty.openpty()
        if answer is not None:
            os.write(terminal, f"{answer}\n".encode())
        done = subprocess.run(
            ["make", "--silent", "clean", *arguments],
            cwd=checkout,
            env={"PATH": f"{tools}:/usr/bin:/bin", "ASKED": str(tmp_path / "asked"), "ELSEWHERE": elsewhere},
            stdin=subprocess.DEVNULL if answer is None else inside,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        os.close(terminal)
        os.close(inside)
        return done.returncode, done.stdout

    return run


def asked(tmp_path: Path) -> list[str]:
    return (tmp_path / "asked").read_text().splitlines()


def test_without_a_terminal_nothing_is_removed_and_the_way_is_said(clean: Clean, checkout: Path) -> None:
    code, said = clean(volume="stride_artifacts")

    assert code != 0
    assert "nothing was removed: there is no terminal to ask on; 'make clean YES=1'" in said
    assert (checkout / ".stride/mlflow.db").exists()
    assert (checkout / ".venv").exists()


@pytest.mark.parametrize("answer", ["no", "", "y", "YES please"])
def test_on_a_terminal_anything_but_yes_removes_nothing(
    clean: Clean, checkout: Path, tmp_path: Path, answer: str
) -> None:
    code, said = clean(answer=answer, volume="stride_artifacts")

    assert code != 0
    assert "clean: nothing was removed" in said
    assert (checkout / ".stride/mlflow.db").exists()
    assert not [line for line in asked(tmp_path) if "down" in line or line.startswith("stride")]


@pytest.mark.parametrize(("arguments", "answer"), [([], "yes"), (["YES=1"], None)], ids=["typed", "given"])
def test_with_a_yes_everything_goes_and_what_went_was_named_with_its_size(
    clean: Clean, checkout: Path, tmp_path: Path, arguments: list[str], answer: str | None
) -> None:
    code, said = clean(*arguments, answer=answer, volume="stride_artifacts")

    assert code == 0, said
    assert sorted(path.name for path in checkout.iterdir()) == ["Makefile", "infra", "pipelines"]
    assert "12.5MB  stride_artifacts" in said
    assert ".stride: every run, model and job" in said
    assert "stride stop" in asked(tmp_path)
    assert "compose --profile * down --volumes --remove-orphans --timeout 20" in asked(tmp_path)


def test_an_engine_that_does_not_answer_is_said_and_the_rest_goes(clean: Clean, checkout: Path) -> None:
    code, said = clean("YES=1", engine=False)

    assert code == 0, said
    assert "no Docker engine answers: if the stack was ever brought up here, its volumes stay." in said
    assert not (checkout / ".stride").exists()


def test_where_nothing_is_left_nothing_is_asked(clean: Clean, checkout: Path) -> None:
    for name in (".stride", ".venv", ".ruff_cache"):
        shutil.rmtree(checkout / name)

    assert clean() == (0, "clean: there is nothing to remove\n")


def test_servers_that_cannot_be_stopped_keep_their_files(clean: Clean, checkout: Path) -> None:
    (checkout / ".venv/bin/stride").write_text("#!/bin/sh\nexit 1\n")

    code, said = clean("YES=1")

    assert code != 0
    assert "could not be stopped" in said
    assert (checkout / ".stride/mlflow.db").exists()


def test_another_word_than_1_is_refused(clean: Clean, checkout: Path) -> None:
    code, said = clean("YES=perhaps")

    assert code != 0
    assert "YES is 'perhaps'; set it to 1, or leave it out to be asked." in said
    assert (checkout / ".stride").exists()


def test_the_stack_of_another_checkout_is_not_removed(clean: Clean, checkout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    code, said = clean("YES=1", volume="stride_artifacts", elsewhere=str(other))
    assert (code, (checkout / ".stride").exists()) == (2, True)
    assert f"the stack 'stride' was brought up in {other}; run 'make clean' there." in said
    assert "down" not in (tmp_path / "asked").read_text()
    assert clean("YES=1", volume="stride_artifacts", elsewhere=str(checkout))[0] == 0
