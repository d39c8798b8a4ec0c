"""infra/backup.sh with a docker that runs what it is asked for here; tests/compose backs up a real stack."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

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
    '--create artifacts') echo artifacts; echo 'tar: file changed as we read it' >&2; exit %d ;;
    *) exec /usr/bin/env PATH=/usr/bin:/bin tar "$@" ;;
esac
"""


def backup(directory: Path, *, tar: int | None = None) -> subprocess.CompletedProcess[str]:
    """The script, where the artifacts' tar ends like this; None: it is the real one."""
    tools = directory / "tools"
    tools.mkdir()
    (directory / "home").mkdir(exist_ok=True)
    for name, text in (("docker", DOCKER), *([("tar", TAR % tar)] if tar is not None else [])):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return subprocess.run(
        [ROOT / "infra/backup.sh", directory / "backup.tar"],
        env={"PATH": f"{tools}:/usr/bin:/bin", "STRIDE_HOME": str(directory / "home")},
        capture_output=True,
        text=True,
        check=False,
    )


def artifacts(directory: Path) -> list[str]:
    """The names in the artifacts' part of the backup."""
    with tarfile.open(directory / "backup.tar") as kept:
        assert kept.getnames() == ["SHA256SUMS", "schema", "mlflow.dump", "artifacts.tar"]
        inner = kept.extractfile("artifacts.tar")
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as found:
            return sorted(found.getnames())


def test_what_lies_among_the_artifacts_is_kept(tmp_path: Path) -> None:
    (tmp_path / "home/artifacts/1").mkdir(parents=True)
    (tmp_path / "home/artifacts/1/model.onnx").write_text("model")
    (tmp_path / "home/elsewhere").write_text("not an artifact")

    done = backup(tmp_path)

    assert (done.returncode, "schema 1a2b" in done.stdout) == (0, True), done.stderr
    assert artifacts(tmp_path) == ["artifacts", "artifacts/1", "artifacts/1/model.onnx"]


def test_before_the_first_artifact_there_is_a_backup_too(tmp_path: Path) -> None:
    done = backup(tmp_path)

    assert done.returncode == 0, done.stderr
    assert artifacts(tmp_path) == ["artifacts"]


def test_a_run_may_write_meanwhile(tmp_path: Path) -> None:
    done = backup(tmp_path, tar=1)

    assert (done.returncode, (tmp_path / "backup.tar").is_file()) == (0, True), done.stderr


def test_artifacts_that_cannot_be_read_make_no_backup(tmp_path: Path) -> None:
    assert backup(tmp_path, tar=2).returncode != 0
    assert not list(tmp_path.glob("backup.tar*"))


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "backup.tar").write_text("monday")

    done = backup(tmp_path)

    assert (done.returncode, "is there already" in done.stderr) == (2, True)
    assert (tmp_path / "backup.tar").read_text() == "monday"
