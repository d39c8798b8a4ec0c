"""Which servers `stride serve` and `make demo` run on this machine: MLflow's UI and API, and inference."""

from __future__ import annotations

import os
from typing import Final

from contracts import places
from contracts.errors import RecipeError
from pipelines import processes
from pipelines.processes import HOST, Record, Server

PORT: Final = 3000
MLFLOW_PORT: Final = 5000
NAMES: Final = ("inference", "mlflow")
"""In the order in which they are stopped: inference first, so that it does not report its registry as away."""


def ports(port: int | None = None, mlflow_port: int | None = None) -> tuple[int, int]:
    """The ports of inference and MLflow: as given, else STRIDE_PORT and STRIDE_MLFLOW_PORT, else 3000 and 5000.

    Raises:
        RecipeError: a variable that is not a port.
    """
    return port or _variable("STRIDE_PORT", PORT), mlflow_port or _variable("STRIDE_MLFLOW_PORT", MLFLOW_PORT)


def start(port: int | None = None, mlflow_port: int | None = None) -> list[Record]:
    """Start inference, and MLflow on the embedded data base before it; running ones that are up to date are kept.

    Where MLFLOW_TRACKING_URI names a server, that one is used and none is started.

    Raises:
        ServerError: a port is taken, or a server does not become healthy.
        RegistryError: the embedded data base cannot be brought to this MLflow's schema.
    """
    port, mlflow_port = ports(port, mlflow_port)
    records = []
    tracking = os.environ.get("MLFLOW_TRACKING_URI") or ""
    if not tracking.startswith("http"):
        records.append(_start_mlflow(mlflow_port))
        tracking = records[0].url
    records.append(processes.start(inference(port, tracking)))
    return records


def stop() -> list[str]:
    """Stop both servers; the names of those that ran."""
    return [name for name in NAMES if processes.stop(name)]


def _start_mlflow(port: int) -> Record:
    from services.tracking import server as tracking

    configured = tracking.embedded(home=places.home(), host=HOST, port=port)
    server = Server(
        name="mlflow",
        command=tuple(configured.command()),
        port=port,
        # MLflow's /health does not ask the data base; this does.
        health="/api/2.0/mlflow/experiments/search?max_results=1",
        sources=("services/tracking",),
        environment=configured.environment({}),
    )
    # Once, before the server: its workers would race to make the tables.
    return processes.start(server, prepare=lambda: tracking.migrate(configured, environment=os.environ))


def inference(port: int, tracking_uri: str) -> Server:
    """The inference service on this port, following the registry at this address."""
    return Server(
        name="inference",
        command=processes.python_module(
            "bentoml", "serve", "services.inference.service:Inference", "--host", HOST, "--port", str(port)
        ),
        port=port,
        health="/livez",  # /readyz would wait for a first model, which may be trained later
        sources=("contracts", "services/inference"),
        environment={
            "MLFLOW_TRACKING_URI": tracking_uri,
            # Its metrics files are in there, and emptied at every start: a second home's service must not do that.
            "BENTOML_HOME": str(places.home() / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "True",
            "PYTHONUNBUFFERED": "1",
        },
    )


def _variable(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise RecipeError(f"{name} is {text!r}; set it to a port from 1 to 65535.")
    return int(text)
