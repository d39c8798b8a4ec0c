"""Whether the data base has this MLflow's schema, and waiting until it has: another process migrates it.

A server that starts beside a migration would make the tables itself, and the two would race. Compose starts one after
the other; on Kubernetes, where everything starts at once, `python -m services.tracking wait` stands before the server.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Final

from contracts.errors import RegistryError

_PAUSE_S: Final = 2.0


def wait_for_schema(backend: str, *, timeout_s: float, pause_s: float = _PAUSE_S) -> None:
    """Come back once the data base has the schema of the MLflow that is installed.

    Args:
        backend: SQLAlchemy URI of the data base; it need not be there yet.
        timeout_s: A data base that starts, and its migration, take a minute at most where there are few runs.
        pause_s: Between two looks.

    Raises:
        RegistryError: the time is over; the message says what was missing last.
    """
    deadline = time.monotonic() + timeout_s
    while (problem := problem_of_schema(backend)) is not None:
        if time.monotonic() > deadline:
            advice = "see the log of `migrate`"
            raise RegistryError(f"tracking data base: not migrated after {timeout_s:g} s ({problem}); {advice}.")
        time.sleep(pause_s)


def problem_of_schema(backend: str) -> str | None:
    """Why a server of this MLflow must not use the data base yet; None where it may."""
    import sqlalchemy
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    engine = sqlalchemy.create_engine(backend)
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"no answer: {reason}"
    finally:
        engine.dispose()
    wanted = ScriptDirectory(str(_migrations())).get_current_head()
    return None if found == wanted else f"its schema is {found or 'empty'}, this MLflow's is {wanted}"


def _migrations() -> Path:
    """MLflow's migrations, found without importing it."""
    package = importlib.util.find_spec("mlflow")
    if package is None or package.origin is None:
        raise RegistryError("MLflow is not installed here; run this in the image of tracking.")
    return Path(package.origin).parent / "store" / "db_migrations"
