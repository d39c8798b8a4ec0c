"""services.training.jobs.outcome: what comes of an attempt, for everything that Ray and the command may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.training.jobs.files import JobFiles
from services.training.jobs.job import Job, Share, Work
from services.training.jobs.outcome import Outcome, outcome
from services.training.jobs.ray_jobs import Attempt


@pytest.fixture
def files(tmp_path: Path) -> JobFiles:
    made = JobFiles(tmp_path, "j")
    made.directory.mkdir()
    return made


def ended(
    files: JobFiles, status: Any, exit_code: int | None = None, reason: str | None = None, **known: Any
) -> Outcome:
    """Of the first attempt at a job, whose columns are `known`."""
    work = Work(recipe="digits", model_name="digits", document="", command=("true",))
    given: dict[str, Any] = {"kind": "train", "submission": "j-1", "attempt": 1, **known}
    job = Job(id="j", sequence=1, work=work, share=Share(), request={}, created=0.0, **given)
    attempt = Attempt(status=status, exit_code=exit_code, reason=reason, message="")
    return outcome(job, attempt, files, most_losses=2)


def test_the_answer_of_the_command_is_the_result(files: JobFiles) -> None:
    (files.directory / "answer.json").write_text('{"run_id": "r2", "test_accuracy": 0.9}')
    assert ended(files, "SUCCEEDED", 0) == Outcome(state="succeeded", result={"run_id": "r2", "test_accuracy": 0.9})


@pytest.mark.parametrize(
    ("kind", "answer", "code", "state", "error"),
    [
        ("ship", '{"verdict": "refused", "reasons": ["best of 1", "0.41 is low"]}', 2, "refused", "0.41 is low"),
        ("ship", "", 2, "failed", "data.path is wrong."),
        ("train", '{"verdict": "refused"}', 2, "failed", "data.path is wrong."),
        ("train", "", 1, "failed", "data.path is wrong."),
    ],
)
def test_a_refusal_by_the_gate_is_not_a_failure(
    files: JobFiles, kind: str, answer: str, code: int, state: str, error: str
) -> None:
    (files.directory / "answer.json").write_text(answer)
    files.log.write_text("--- attempt 1 begins\nerror: data.path is wrong.\n")
    found = ended(files, "FAILED", code, "JOB_ENTRYPOINT_COMMAND_ERROR", kind=kind)
    assert (found.state, found.error) == (state, error)


def test_a_command_that_ends_without_a_word_is_told_by_its_exit_code(files: JobFiles) -> None:
    assert ended(files, "FAILED", 5).error == "the command ended with exit code 5; its log says more."


@pytest.mark.parametrize(
    ("code", "reason", "how"),
    [
        (-9, "JOB_ENTRYPOINT_COMMAND_ERROR", "SIGKILL, as the system does where memory is short"),
        (143, "JOB_ENTRYPOINT_COMMAND_ERROR", "SIGTERM"),
        (75, "JOB_ENTRYPOINT_COMMAND_ERROR", "a process of an earlier attempt that does not end"),
        (None, "JOB_SUPERVISOR_ACTOR_DIED", "Ray (JOB_SUPERVISOR_ACTOR_DIED)"),
    ],
)
def test_a_lost_process_is_begun_again_but_not_for_ever(
    files: JobFiles, code: int | None, reason: str, how: str
) -> None:
    assert ended(files, "FAILED", code, reason, losses=1) == Outcome(state=None, lost=how)
    found = ended(files, "FAILED", code, reason, losses=2)
    assert found.state == "failed"
    assert found.error == (
        f"its process was lost 3 times, the last time by {how}; "
        "see its log; out of memory, a smaller fit.batch_size may help."
    )


def test_who_stops_a_job_through_ray_has_cancelled_it(files: JobFiles) -> None:
    found = ended(files, "STOPPED")
    assert (found.state, found.error) == ("cancelled", "it was stopped through Ray, not through this service.")


def test_a_job_that_was_stopped_with_its_service_is_begun_again_and_that_is_no_loss(files: JobFiles) -> None:
    files.interrupt("j-1")
    assert ended(files, "STOPPED") == Outcome(state=None)
    assert ended(files, "STOPPED", submission="j-2").state == "cancelled"


@pytest.mark.parametrize("said", [("STOPPED", None), ("FAILED", -9), ("FAILED", 1)])
def test_a_job_that_was_being_cancelled_is_cancelled_however_it_ended(
    files: JobFiles, said: tuple[str, int | None]
) -> None:
    assert ended(files, *said, cancelling=True) == Outcome(state="cancelled")


def test_a_job_that_was_done_before_it_could_be_cancelled_has_succeeded(files: JobFiles) -> None:
    assert ended(files, "SUCCEEDED", 0, cancelling=True).state == "succeeded"
