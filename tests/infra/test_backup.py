"""infra/backup.sh with a docker that runs what it is asked for here; tests/compose backs up a real stack."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = """#!/bin/sh
case "$*" in
    *"exec -T tracking "*) shift 4; exec "$@" ;;
    *pg_dump*) echo dump ;;
    *alembic_version*) echo 1a2b ;;
esac
"""
TAR = """#!/bin/sh
case "$*" in
    *--directory=/var/lib/stride*) echo artifacts; echo 'tar: file changed as we read it' >&2; exit %d ;;
    *) exec /usr/bin/env PATH=/usr/bin:/bin tar "$@" ;;
esac
"""


def backup(directory: Path, *, tar: int) -> subprocess.CompletedProcess[str]:
    """The script, where the artifacts' tar ends like this."""
    tools = directory / "tools"
    tools.mkdir()
    for name, text in (("docker", DOCKER), ("tar", TAR % tar)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return subprocess.run(
        [ROOT / "infra/backup.sh", directory / "backup.tar"],
        env={"PATH": f"{tools}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("ended", [0, 1], ids=["at rest", "a run writes meanwhile"])
def test_a_backup_is_made_while_everything_runs(tmp_path: Path, ended: int) -> None:
    done = backup(tmp_path, tar=ended)

    assert (done.returncode, "schema 1a2b" in done.stdout) == (0, True), done.stderr
    with tarfile.open(tmp_path / "backup.tar") as kept:
        assert kept.getnames() == ["SHA256SUMS", "schema", "mlflow.dump", "artifacts.tar"]


def test_artifacts_that_cannot_be_read_make_no_backup(tmp_path: Path) -> None:
    assert backup(tmp_path, tar=2).returncode != 0
    assert not list(tmp_path.glob("backup.tar*"))
