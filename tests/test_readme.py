"""What the README says exists: commands, targets, files, variables and recipes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from pipelines import recipe_files
from pipelines.cli.main import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines() if line.strip()]


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.M))
    assert named
    assert named <= targets


def test_every_stride_command_that_is_named_exists_and_every_command_is_named() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`(?:\.venv/bin/)?stride ([a-z]+)", README))
    assert named == commands


@pytest.mark.parametrize("line", [line for line in SHELL if line.startswith(".venv/bin/stride")])
def test_the_options_of_every_example_are_known(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    named = words[: 2 if hasattr(command, "commands") else 1]  # `jobs submit` is a command of a group
    result = CliRunner().invoke(app, [*named, "--help"])
    assert result.exit_code == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in result.output


def test_every_file_in_the_tree_and_every_link_exists() -> None:
    tree = re.search(r"## The tree\n+```\n(.*?)```", README, re.S)
    assert tree is not None
    folder = ""
    for line in tree.group(1).splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
            assert (ROOT / folder).is_dir(), line
        else:
            assert (ROOT / folder / name).exists(), line
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_recipe_is_in_the_table() -> None:
    named = {
        name for row in re.findall(r"^\| (`[^|]*) \|", README, re.M) for name in re.findall(r"`([a-z0-9-]+)`", row)
    }
    assert set(recipe_files.names()) <= named


def test_every_variable_that_is_named_is_read_somewhere() -> None:
    sources = "".join(
        path.read_text() for room in ("contracts", "services", "pipelines") for path in (ROOT / room).rglob("*.py")
    )
    for variable in set(re.findall(r"`(STRIDE_[A-Z_]+|MLFLOW_[A-Z_]+)`", README)):
        assert variable in sources, variable
