"""infra/restore.sh with a docker that only writes down what it is asked; tests/compose restores for real."""

from __future__ import annotations

import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = """#!/bin/sh
echo "$*" >> "$ASKED"
case "$*" in
    *to_regclass*) echo 1 ;;
    *'count(*) FROM runs'*) echo %d ;;
esac
"""


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """A whole backup, of nothing."""
    names = ("schema", "mlflow.dump", "artifacts.tar")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "SHA256SUMS").write_text("".join(f"{sha256().hexdigest()}  {name}\n" for name in names))
    file = tmp_path / "backup.tar"
    subprocess.run(["tar", "--create", f"--file={file}", f"--directory={tmp_path}", "SHA256SUMS", *names], check=True)
    return file


def restore(directory: Path, backup: Path, *, runs: int) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What the script said, and what it asked docker for."""
    tools = directory / "tools"
    tools.mkdir()
    (tools / "docker").write_text(DOCKER % runs)
    (tools / "docker").chmod(0o755)
    asked = directory / "asked"
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "ASKED": str(asked)}
    command = [ROOT / "infra/restore.sh", backup]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done, asked.read_text().splitlines()


def test_a_refused_restore_stops_nothing(tmp_path: Path, backup: Path) -> None:
    done, asked = restore(tmp_path, backup, runs=3)

    assert (done.returncode, "holds 3 runs" in done.stderr) == (2, True)
    assert not [line for line in asked if line.startswith("compose stop")]
    assert not [line for line in asked if "DROP SCHEMA" in line]


def test_what_uses_the_data_base_is_stopped_before_it_is_replaced(tmp_path: Path, backup: Path) -> None:
    done, asked = restore(tmp_path, backup, runs=0)

    assert done.returncode == 0, done.stderr
    (stopped,) = (at for at, line in enumerate(asked) if line == "compose stop inference training tracking")
    (dropped,) = (at for at, line in enumerate(asked) if "DROP SCHEMA" in line)
    counted = [at for at, line in enumerate(asked) if "count(*) FROM runs" in line]
    assert counted[0] < stopped < counted[1] < dropped  # once more: a run may have begun until then
