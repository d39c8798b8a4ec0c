"""Backup, restore, and the data base of an older MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.compose.running import bundle, champion, runs
from tests.compose.stack import Stack, free_ports

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]
PSQL = ("exec", "-T", "postgres", "psql", "--username=mlflow", "--dbname=mlflow", "--tuples-only", "--no-align")


def test_a_backup_is_restored_into_a_fresh_stack(stack: Stack, tmp_path: Path) -> None:
    file = tmp_path / "stride.tar"
    assert "schema" in stack.run("make", "-s", "backup", f"FILE={file}").stdout
    with pytest.raises(AssertionError, match="the data base holds"):
        stack.run("make", "-s", "restore", f"FILE={file}")

    fresh = Stack(stack.directory, f"{stack.project}-fresh", free_ports())
    try:
        fresh.run("make", "-s", "restore", f"FILE={file}")
        fresh.up("tracking")
        assert runs(fresh) == runs(stack)
        assert champion(fresh) == champion(stack)
        assert bundle(fresh) == bundle(stack)
    finally:
        fresh.remove()


def test_an_older_mlflow_s_data_base_is_brought_to_this_one_s_schema(stack: Stack) -> None:
    """Postgres' migrations are not SQLite's, which tests/services/tracking tries."""
    stack.compose(*PSQL, "--command=CREATE DATABASE older")
    script = (Path(__file__).parent / "older_schema.py").read_text()
    address = "STRIDE_DATABASE=postgresql+psycopg2://mlflow@postgres:5432/older"

    done = stack.compose("run", "--rm", "--no-deps", "-T", "-e", address, "migrate", "python", "-", input=script)

    found = json.loads(done.stdout.splitlines()[-1])
    now = stack.compose(*PSQL, "--command=SELECT version_num FROM alembic_version").stdout.strip()
    assert found == {"code": 0, "schema": now, "metrics": [["best/accuracy", 0.97]]}
