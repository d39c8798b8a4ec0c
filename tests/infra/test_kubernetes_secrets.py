"""infra/kubernetes/secrets.sh, with a kubectl that writes down what it was asked, and what it was given."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KUBECTL = """#!/bin/bash
echo "$@" >> "$RECORD/asked"
case " $* " in
    *" get "*) for name in $THERE; do case " $* " in *" secret $name "*) echo "secret/$name";; esac; done ;;
    *" create "*) name=$(sed 's/.* generic \\([a-z]*\\) .*/\\1/' <<< "$*"); cat > "$RECORD/$name" ;;
    *) exit "${REFUSED:-0}" ;;
esac
"""


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Where the fake kubectl writes to: `asked`, and a file with the value of each Secret that was made."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/kubectl").write_text(KUBECTL)
    (tmp_path / "bin/kubectl").chmod(0o755)
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def run(made: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {"PATH": f"{made.parent / 'bin'}:{os.environ['PATH']}", "RECORD": str(made), "THERE": "", **environment}
    command = [str(ROOT / "infra/kubernetes/secrets.sh"), *options]
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False)


def test_every_secret_gets_a_value_of_its_own_that_is_on_no_command_line(made: Path) -> None:
    done = run(made)

    assert done.returncode == 0, done.stderr
    asked = (made / "asked").read_text()
    values = {path.name: path.read_text() for path in made.iterdir() if path.name != "asked"}
    assert set(values) == {"postgres", "training", "inference", "metrics", "ray"}
    assert len(set(values.values())) == 5
    for value in values.values():
        assert re.fullmatch("[0-9a-f]{64}", value)
        assert value not in asked + done.stdout + done.stderr


def test_the_values_are_keys_that_the_services_take(made: Path) -> None:
    from contracts.api_keys import read

    run(made)

    for name in ("training", "inference", "metrics"):
        assert len(read(made / name, "KEYS")) == 1


def test_a_secret_that_is_there_stays(made: Path) -> None:
    done = run(made, THERE="postgres ray")

    assert done.returncode == 0, done.stderr
    assert {path.name for path in made.iterdir()} == {"asked", "training", "inference", "metrics"}
    assert "secret/postgres is there" in done.stdout


def test_the_namespace_comes_first_and_kubectl_s_options_are_passed_on(made: Path) -> None:
    run(made, "--context", "house")

    lines = (made / "asked").read_text().splitlines()
    assert lines[0] == "--context house apply --filename base/namespace.yaml"
    assert len(lines) == 11
    assert all(line.startswith("--context house ") for line in lines)
    assert all("--namespace stride" in line for line in lines[1:])


def test_without_a_cluster_nothing_is_made(made: Path) -> None:
    done = run(made, REFUSED="3")

    assert done.returncode == 3
    assert {path.name for path in made.iterdir()} == {"asked"}
