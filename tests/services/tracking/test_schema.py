from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from contracts.errors import RegistryError
from services.tracking.schema import problem_of_schema, wait_for_schema


def migrate_to(path: Path, revision: str) -> None:
    """What a migration leaves behind for those who look."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num TEXT)")
        connection.execute("DELETE FROM alembic_version")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))


def revision_of(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(revision)


def test_what_mlflow_migrated_itself_is_its_schema(migrated_database: Path) -> None:
    assert problem_of_schema(f"sqlite:///{migrated_database}") is None


def test_an_empty_data_base_and_an_older_schema_are_not_it(tmp_path: Path, migrated_database: Path) -> None:
    path, current = tmp_path / "mlflow.db", revision_of(migrated_database)

    assert problem_of_schema(f"sqlite:///{path}") == f"its schema is empty, this MLflow's is {current}"
    migrate_to(path, "451aebb31d03")
    assert problem_of_schema(f"sqlite:///{path}") == f"its schema is 451aebb31d03, this MLflow's is {current}"


def test_waiting_ends_with_the_migration(tmp_path: Path, migrated_database: Path) -> None:
    path = tmp_path / "mlflow.db"
    migration = threading.Timer(0.2, migrate_to, (path, revision_of(migrated_database)))
    started = time.monotonic()
    migration.start()

    wait_for_schema(f"sqlite:///{path}", timeout_s=30, pause_s=0.02)

    assert 0.2 <= time.monotonic() - started < 30


def test_waiting_in_vain_ends_with_what_was_missing() -> None:
    backend = "postgresql+psycopg2://mlflow@127.0.0.1:1/mlflow"

    with pytest.raises(
        RegistryError, match=r"not migrated after 0 s \(no answer: .*refused.*\); see the log of"
    ) as caught:
        wait_for_schema(backend, timeout_s=0, pause_s=0)
    assert "\n" not in caught.value.message
