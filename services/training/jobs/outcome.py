"""What comes of a job when an attempt at it has ended: the job's own end, or another attempt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from services.training.jobs.files import JobFiles
from services.training.jobs.job import Job, State
from services.training.jobs.launch import BUSY
from services.training.jobs.ray_jobs import Attempt

_TERMINATED: Final = frozenset({143, -15})
_KILLED: Final = frozenset({137, -9})
_REFUSED: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Of one attempt."""

    state: State | None
    """That the job ends in; None where it is begun again."""
    error: str | None = None
    result: dict[str, Any] | None = None
    lost: str | None = None
    """How the process was lost, where it was and the job is begun again."""


def outcome(job: Job, attempt: Attempt, files: JobFiles, *, most_losses: int) -> Outcome:
    """Judge an attempt that has ended.

    Args:
        job: Whose attempt it was.
        attempt: What Ray says of it; neither pending nor running.
        files: Of the job: its answer and its log are read.
        most_losses: How often a job is begun again after its process was lost.
    """
    if attempt.status == "SUCCEEDED":
        return Outcome(state="succeeded", result=files.answer())
    if job.cancelling:
        return Outcome(state="cancelled")
    if attempt.status == "STOPPED":
        return _stopped(job, files)
    if by_itself(attempt):
        return _said(job, attempt, files)
    return _lost(job, attempt, most_losses)


def by_itself(attempt: Attempt) -> bool:
    """Whether the command has failed by itself: it was not killed, told to stop, or lost with its node."""
    code = attempt.exit_code
    return attempt.status == "FAILED" and code is not None and code not in _TERMINATED | _KILLED | {BUSY}


def _stopped(job: Job, files: JobFiles) -> Outcome:
    if files.interrupted(job.submission or ""):  # with a service that was killed before it had noted that
        return Outcome(state=None)
    return Outcome(state="cancelled", error="it was stopped through Ray, not through this service.")


def _lost(job: Job, attempt: Attempt, most_losses: int) -> Outcome:
    if job.losses >= most_losses:
        detail = f"its process was lost {job.losses + 1} times, the last time by {_how(attempt)}"
        advice = "see its log; out of memory, a smaller fit.batch_size may help"
        return Outcome(state="failed", error=f"{detail}; {advice}.")
    return Outcome(state=None, lost=_how(attempt))


def _said(job: Job, attempt: Attempt, files: JobFiles) -> Outcome:
    """The command said by its exit code what came of it."""
    answer = files.answer()
    refused = answer is not None and answer.get("verdict") == "refused"
    if attempt.exit_code == _REFUSED and job.kind == "ship" and answer is not None and refused:
        reasons = answer.get("reasons") or ["the gate gave no reason"]
        return Outcome(state="refused", result=answer, error=str(reasons[-1]))
    sentence = files.error() or f"the command ended with exit code {attempt.exit_code}; its log says more."
    return Outcome(state="failed", result=answer, error=sentence)


def _how(attempt: Attempt) -> str:
    if attempt.exit_code in _KILLED:
        return "SIGKILL, as the system does where memory is short"
    if attempt.exit_code in _TERMINATED:
        return "SIGTERM"
    if attempt.exit_code == BUSY:
        return "a process of an earlier attempt that does not end"
    return f"Ray ({attempt.reason or 'no reason given'})"
