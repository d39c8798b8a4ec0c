"""`stride jobs`: the training service's jobs, submitted, listed, watched and cancelled."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.console import Force, Json, Overrides, answer, answer_json, say, table

if TYPE_CHECKING:
    from pipelines.jobs_client import JobsClient

JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, see `stride jobs list`.")]
_ENDED_BADLY = {"refused": 2, "failed": 1, "cancelled": 1}

jobs = typer.Typer(
    help="Training jobs on a service: it runs where STRIDE_JOBS_URL says (http://127.0.0.1:8000).",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def register(app: typer.Typer) -> None:
    app.add_typer(jobs, name="jobs")


@jobs.command()
def submit(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="train, ship or sweep.")],
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a YAML file, which is sent.")],
    overrides: Overrides = None,
    force: Force = False,
    gpus: Annotated[float | None, typer.Option(min=0, help="GPUs, or a share of one, for this job alone.")] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="sweep: how many settings are tried.")] = None,
    space: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUES", help="sweep: what is tried.")] = None,
    key: Annotated[str | None, typer.Option(help="The same key gives the same job, however often.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its log until it has ended.")] = False,
    as_json: Json = False,
) -> None:
    """Post a job.

    \b
    Examples:
      stride jobs submit train digits --set fit.epochs=3 --follow
      stride jobs submit ship mine.yaml --key night-2026-11-21
    """
    from contracts.errors import RecipeError
    from pipelines import recipe_files

    # Resolved here: a file is on this machine, and what --set means is the same in both places.
    content = recipe_files.load(recipe, overrides or ()).model_dump(mode="json")
    body: dict[str, Any] = {"kind": kind, "recipe": content}
    if force:
        body["force"] = True
    if gpus is not None:
        body["gpus"] = gpus
    if trials is not None:
        body["trials"] = trials
    for item in space or ():
        name, equals, values = item.partition("=")
        if not equals:
            raise RecipeError(f"--space {item!r} is not KEY=VALUES; write it like optimizer.lr=loguniform(1e-4, 1e-1).")
        body.setdefault("space", {})[name.strip()] = values.strip()
    with _client() as client:
        job = client.submit(body, idempotency_key=key)
        if follow:
            say(f"job {job['id']}")
            _watch(client, job["id"], as_json=as_json)
            return
    _show(job, as_json=as_json)
    say(f"its log: stride jobs logs {job['id']} --follow")


@jobs.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state: queued, running, succeeded …")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most jobs shown, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List jobs, newest first.

    \b
    Example:
      stride jobs list --state running
    """
    with _client() as client:
        found = client.jobs(state=state, limit=limit)
    if as_json:
        answer_json(found)
        return
    rows = [
        (job["id"], job["kind"], job["recipe"], job["state"], job["created"][:19], (job["error"] or "")[:60])
        for job in found
    ]
    answer(table(rows, ("job", "kind", "recipe", "state", "created (UTC)", "error")) if rows else "no jobs")


@jobs.command()
def show(job: JobId, as_json: Json = False) -> None:
    """Show a job.

    \b
    Example:
      stride jobs show 3f2a90c1d4e54b0c
    """
    with _client() as client:
        _show(client.job(job), as_json=as_json)


@jobs.command()
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """Show a job's log.

    With --follow the exit code is the job's: 0 succeeded, 1 failed or cancelled, 2 refused by the gate.

    \b
    Example:
      stride jobs logs 3f2a90c1d4e54b0c --follow
    """
    with _client() as client:
        if follow:
            _watch(client, job, as_json=False)
            return
        for piece in client.log(job, follow=False):
            sys.stdout.buffer.write(piece)
    sys.stdout.flush()


@jobs.command()
def cancel(job: JobId, as_json: Json = False) -> None:
    """Cancel a job; one that runs saves its checkpoint first.

    \b
    Example:
      stride jobs cancel 3f2a90c1d4e54b0c
    """
    with _client() as client:
        _show(client.cancel(job), as_json=as_json)


def _client() -> JobsClient:
    from pipelines.jobs_client import JobsClient

    return JobsClient()


def _watch(client: JobsClient, job_id: str, *, as_json: bool) -> None:
    """Show the log on standard error and then the job; ends with the job's exit code."""
    for piece in client.log(job_id, follow=True):
        sys.stderr.buffer.write(piece)
        sys.stderr.flush()
    job = client.job(job_id)
    _show(job, as_json=as_json)
    if code := _ENDED_BADLY.get(job["state"], 0):
        raise typer.Exit(code)


def _show(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        answer_json(job)
        return
    state = f"{job['state']}, being cancelled" if job["cancelling"] else job["state"]
    answer(f"job            {job['id']} ({job['kind']} {job['recipe']})\nstate          {state}")
    if job["error"]:
        answer(f"               {job['error']}")
    for run in job["links"]["runs"] or job["runs"]:
        answer(f"run            {run}")
