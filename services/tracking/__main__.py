"""python -m services.tracking {secrets|migrate|wait|serve|healthy}: MLflow's server in a container, on Postgres.

    secrets   make the stack's secrets that are missing, one file each below /secrets; those that exist stay
    migrate   bring the data base to this MLflow's schema
    wait      come back once another process has done that; exit 1 after 10 minutes
    serve     become the server
    healthy   exit 0 where the server answers from its data base

| variable | meaning | default |
|---|---|---|
| STRIDE_DATABASE | the data base, without a password | postgresql+psycopg2://mlflow@postgres:5432/mlflow |
| STRIDE_DATABASE_PASSWORD_FILE | its password | /run/secrets/password |
| STRIDE_ARTIFACTS | where the server keeps artifacts | $STRIDE_HOME/artifacts |
| STRIDE_TRACKING_HOSTS | its names beside tracking:5000 and localhost, with the port, comma-separated | none |
| STRIDE_TRACKING_WORKERS | processes | 1 |
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from contracts import places
from contracts.errors import RecipeError, RegistryError, StrideError
from services.tracking import secret_files
from services.tracking.schema import wait_for_schema
from services.tracking.server import Server, migrate, problem_of

_DATABASE: Final = "postgresql+psycopg2://mlflow@postgres:5432/mlflow"
_PASSWORD_FILE: Final = "/run/secrets/password"  # noqa: S105 - where it lies
_PORT: Final = 5000
_OWN_NAME: Final = f"tracking:{_PORT}"
"""By which the other services of the stack call it; nobody can take it away from them by adding a name."""
_MIGRATED: Final = "the data base has this MLflow's schema"
_WAIT_S: Final = 600.0
USAGE: Final = "usage: python -m services.tracking {secrets|migrate|wait|serve|healthy}"


def server_of(environment: Mapping[str, str]) -> Server:
    """The server that the environment describes; it listens on every address of its container.

    Raises:
        RecipeError: a data base address that holds a password, or a number of workers that is none.
    """
    database = environment.get("STRIDE_DATABASE") or _DATABASE
    user, at, _ = database.partition("://")[2].partition("@")
    if at and ":" in user:
        raise RecipeError(
            "STRIDE_DATABASE holds a password, which everybody sees who inspects the container; "
            "put it into the file that STRIDE_DATABASE_PASSWORD_FILE names."
        )
    workers = environment.get("STRIDE_TRACKING_WORKERS") or "1"
    if not workers.isdecimal() or not 0 < int(workers) <= 64:
        raise RecipeError(f"STRIDE_TRACKING_WORKERS is {workers!r}; set it to a whole number from 1 to 64.")
    further = (environment.get("STRIDE_TRACKING_HOSTS") or "").split(",")
    return Server(
        backend=database,
        proxied=environment.get("STRIDE_ARTIFACTS") or str(places.home() / "artifacts"),
        host="0.0.0.0",  # noqa: S104 - of a container; who reaches it is decided by its networks
        port=_PORT,
        names=tuple(dict.fromkeys((_OWN_NAME, *(name.strip() for name in further if name.strip())))),
        workers=int(workers),
        json_log=True,
    )


def with_password(environment: Mapping[str, str], *, directory: Path) -> dict[str, str]:
    """`environment` with PGPASSFILE, a file in `directory` that Postgres' client library reads the password from.

    So it stands neither in the environment nor in an address that an error message could show.

    Raises:
        RecipeError: the password's file cannot be read, or is empty.
    """
    path = Path(environment.get("STRIDE_DATABASE_PASSWORD_FILE") or _PASSWORD_FILE)
    try:
        password = path.read_text().strip()
    except OSError as error:
        raise RecipeError(f"STRIDE_DATABASE_PASSWORD_FILE: {path} cannot be read ({error.strerror}).") from error
    if not password:
        raise RecipeError(f"STRIDE_DATABASE_PASSWORD_FILE: {path} is empty; put the data base's password there.")
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    passfile = directory / "pgpass"
    passfile.unlink(missing_ok=True)
    # The library refuses one that others may read.
    with os.fdopen(os.open(passfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"*:*:*:*:{escaped}\n")
    return {**environment, "PGPASSFILE": str(passfile)}


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """The exit code; `serve` does not come back."""
    if len(arguments) != 1 or arguments[0] not in ("secrets", "migrate", "wait", "serve", "healthy"):
        return _say(USAGE, 2)
    try:
        return _run(arguments[0], environment)
    except StrideError as error:
        return _say(f"error: {error.message}", error.exit_code)


def _run(command: str, environment: Mapping[str, str]) -> int:
    if command == "secrets":
        made = secret_files.make(Path("/secrets"))
        return _say(f"secrets: made {', '.join(made)}" if made else "secrets: all are there", 0)
    server = server_of(environment)
    if command == "healthy":
        problem = problem_of(server.url)
        return _say(f"not healthy: {problem}" if problem else "healthy", 1 if problem else 0)
    given = with_password(environment, directory=Path(environment.get("TMPDIR") or "/tmp"))  # noqa: S108
    if command == "migrate":
        migrate(server, environment=given)
        return _say(_MIGRATED, 0)
    if command == "wait":
        os.environ["PGPASSFILE"] = given["PGPASSFILE"]  # Postgres' client library looks here
        wait_for_schema(server.backend, timeout_s=_WAIT_S)
        return _say(_MIGRATED, 0)
    line = server.command()
    try:
        os.execve(line[0], line, server.environment(given))  # noqa: S606 - our own command line
    except OSError as error:
        raise RegistryError(f"tracking server: {line[0]} cannot be started ({error.strerror}).") from error


def _say(text: str, code: int) -> int:
    sys.stderr.write(f"{text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
