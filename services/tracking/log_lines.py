"""MLflow's log as the other services write theirs: one line of JSON an event.

    python -m services.tracking.log_lines server --host 127.0.0.1 …        # `mlflow server`, with that log

logging.json beside this names the formatters; uvicorn, which MLflow starts, is given it as well.
"""

from __future__ import annotations

import json
import logging
import logging.config
import runpy
from copy import copy
from pathlib import Path
from typing import Final

from contracts.json_log import JsonLine

CONFIG: Final = Path(__file__).with_name("logging.json")


class RequestLine(JsonLine):
    """A record of uvicorn's access log, its parts as fields."""

    def format(self, record: logging.LogRecord) -> str:
        client, method, path, _version, status = record.args  # type: ignore[misc] # as uvicorn.logging reads it, too
        told = copy(record)
        told.msg, told.args = "request", ()
        told.fields = {"client": client, "method": method, "path": path, "status": status}
        return super().format(told)


_HEALTH: Final = ("POST", "/api/2.0/mlflow/experiments/search")
"""What `server.problem_of` asks."""


class NoHealthCheck(logging.Filter):
    """Leaves out the health check from inside the container, every 5 s, where it was answered well."""

    def filter(self, record: logging.LogRecord) -> bool:
        client, method, path, _version, status = record.args  # type: ignore[misc] # as above
        own = str(client).startswith("127.0.0.1:") and (method, path) == _HEALTH
        return not own or int(str(status)) >= 400


def main() -> None:
    """MLflow's own command, with the arguments of the process."""
    logging.config.dictConfig(json.loads(CONFIG.read_text()))
    runpy.run_module("mlflow", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
