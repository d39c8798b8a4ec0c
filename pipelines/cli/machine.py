"""`stride doctor`: this machine."""

from __future__ import annotations

import typer

from pipelines.cli.console import Json, answer, answer_json, working


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(as_json: Json = False) -> None:
    """Look at this machine, and say what to do.

    Packages, devices, disk, ports, servers and data sets, each with a remedy where one is needed.
    Exits 1 where something that Stride needs is missing; warnings do not count.

    \b
    Example:
      stride doctor --json
    """
    from pipelines import doctor as look
    from pipelines import serving

    port, mlflow_port = serving.ports()
    with working():
        checks = look.examine(port=port, mlflow_port=mlflow_port)
    summary = look.summary(checks)
    if as_json:
        answer_json(summary)
    else:
        for check in checks:
            remedy = f"\n{'':18}-> {check.remedy}" if check.remedy else ""
            answer(f"{check.status:<5} {check.name:<11} {check.detail}{remedy}")
    if not summary["ok"]:
        raise typer.Exit(1)
