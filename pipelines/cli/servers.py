"""`stride serve`, `stop` and `predict`: the running service."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from contracts.errors import StrideError
from pipelines.cli.console import Json, answer, answer_json, say, table, working

if TYPE_CHECKING:
    from pipelines.processes import Record

Port = Annotated[int | None, typer.Option(help="Inference listens here.", envvar="STRIDE_PORT", min=1, max=65535)]
MlflowPort = Annotated[
    int | None,
    typer.Option("--mlflow-port", help="MLflow listens here.", envvar="STRIDE_MLFLOW_PORT", min=1, max=65535),
]


def register(app: typer.Typer) -> None:
    app.command("serve")(serve)
    app.command("stop")(stop)
    app.command("predict")(predict)


def serve(
    port: Port = None,
    mlflow_port: MlflowPort = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Leave both servers running and return.")] = False,
    as_json: Json = False,
) -> None:
    """Serve the champions, with MLflow beside.

    Inference answers at 127.0.0.1:3000, MLflow's UI and API at 127.0.0.1:5000.
    Servers that run already and are up to date are kept. Ctrl-C stops both; with --detach `stride stop` does.
    With MLFLOW_TRACKING_URI set to a server's address that one is used and no MLflow is started.

    \b
    Examples:
      stride serve
      stride serve --detach --port 3100 --mlflow-port 5100
    """
    from pipelines import serving

    say("starting MLflow and inference ...")
    with working():
        records = serving.start(port, mlflow_port)
    if as_json:
        answer_json({record.name: {"url": record.url, "pid": record.pid, "log": record.log} for record in records})
    else:
        rows = [
            (record.name, record.url, "ran already" if record.reused else "started", record.log) for record in records
        ]
        answer(table(rows, ("server", "address", "", "log")))
    if detach:
        say("stop them with: stride stop")
        return
    say("Ctrl-C stops both")
    try:
        _follow(records)
    finally:
        serving.stop()


def stop() -> None:
    """Stop both servers.

    Ends what `stride serve` or `make demo` started in this STRIDE_HOME, with every process of it.

    \b
    Example:
      stride stop
    """
    from pipelines import serving

    stopped = serving.stop()
    answer(f"stopped {' and '.join(stopped)}" if stopped else "nothing to stop: no server of this STRIDE_HOME runs")


def predict(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", show_default=False)],
    url: Annotated[
        str | None, typer.Option(help="The inference service; http://127.0.0.1:3000, or the port of STRIDE_PORT.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model's name; without it the service's default model.")] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="How many classes to show; 5, or all where there are fewer.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask the running service what is on images.

    \b
    Examples:
      stride predict cat.jpg
      stride predict pictures/*.png --top-k 1 --json
    """
    from pipelines import predict as client
    from pipelines import processes, serving

    address = url or f"http://{processes.HOST}:{serving.ports()[0]}"
    found = client.predict(client.read(images), url=address, model=model, top_k=top_k)
    if as_json:
        answer_json(found)
        return
    rows = [
        (each["image"], ", ".join(f"{top['label']} {top['probability']:.4f}" for top in each.get("top") or [each]))
        for each in found["predictions"]
    ]
    answer(table(rows, ("image", "most probable")))
    say(f"model {found['model']['name']} version {found['model']['version']} on {found['model'].get('provider', '-')}")


def _follow(records: list[Record]) -> None:
    """Copy inference's log to the terminal until a server ends, or a signal asks to stop."""
    import psutil

    leaders = [psutil.Process(record.pid) for record in records]
    with _sigterm_interrupts(), Path(records[-1].log).open(errors="replace") as log:
        while True:
            ended, _ = psutil.wait_procs(leaders, timeout=0.5)
            if text := log.read():
                say(text.rstrip("\n"))
            if ended:
                gone = next(record for record in records if record.pid == ended[0].pid)
                raise StrideError(f"{gone.name} ended by itself; its log is {gone.log}.")


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM, as a supervisor sends it, ends a foreground `serve` the way Ctrl-C does."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
