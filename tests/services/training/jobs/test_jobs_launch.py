"""services.training.jobs.launch and files: the process that Ray starts for a job."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.training.jobs.files import JobFiles
from services.training.jobs.job import RECIPE_FILE, Job
from services.training.jobs.store import Store

MakeJob = Callable[..., Job]


def launched(store: Store, job: Job, **options: object) -> subprocess.Popen[bytes]:
    """Begins an attempt as Ray does: in a shell."""
    entrypoint = JobFiles(store.directory, job.id).prepare(job)
    return subprocess.Popen(entrypoint, shell=True, **options)  # type: ignore[call-overload,no-any-return] # noqa: S602


def script(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_answer_and_log_are_kept_apart_and_the_exit_code_is_the_commands(store: Store, make_job: MakeJob) -> None:
    job = make_job(script("import sys; print('{\"run_id\": \"r9\"}'); sys.stderr.write('error: no.\\n'); sys.exit(7)"))
    files = JobFiles(store.directory, job.id)
    assert launched(store, job).wait() == 7
    assert files.answer() == {"run_id": "r9"}
    assert files.error() == "no."
    assert files.runs() == ("r9",)


def test_what_a_user_sent_reaches_the_command_as_it_is(
    store: Store, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = "$(touch pwned) `touch pwned`; touch pwned & 'x' \"y\" \n --force"
    job = make_job((*script("import json, os, sys; print(json.dumps([*sys.argv[1:], os.getcwd()]))"), hostile))
    assert launched(store, job).wait() == 0
    printed = json.loads((JobFiles(store.directory, job.id).directory / "answer.json").read_text())
    assert printed == [hostile, str(tmp_path)]
    assert not (tmp_path / "pwned").exists()


def test_the_recipe_is_a_file_whose_path_the_command_gets(store: Store, make_job: MakeJob) -> None:
    job = make_job((*script("import sys, json; print(json.dumps({'text': open(sys.argv[1]).read()}))"), RECIPE_FILE))
    assert launched(store, job).wait() == 0
    assert JobFiles(store.directory, job.id).answer() == {"text": job.work.document}


def test_a_signal_reaches_the_command_once(store: Store, make_job: MakeJob) -> None:
    job = make_job(
        script(
            "import signal, sys, time\n"
            "signal.signal(signal.SIGTERM, lambda *_: (sys.stderr.write('told\\n'), sys.exit(143)))\n"
            "sys.stderr.write('ready\\n'); sys.stderr.flush(); time.sleep(60)"
        )
    )
    files = JobFiles(store.directory, job.id)
    process = launched(store, job)
    wait_for_line(files.log, "ready")
    process.send_signal(signal.SIGTERM)  # to the very process that was begun: no shell and no parent is in between
    assert process.wait(timeout=20) == 143
    assert files.log.read_text().count("told") == 1


def test_an_attempt_waits_for_the_end_of_the_one_before(store: Store, make_job: MakeJob) -> None:
    code = (
        "import sys, time; sys.stderr.write('begin\\n'); sys.stderr.flush(); time.sleep(1); sys.stderr.write('end\\n')"
    )
    job = make_job(script(code))
    first = launched(store, job)
    files = JobFiles(store.directory, job.id)
    wait_for_line(files.log, "begin")
    second = launched(store, job)
    assert (first.wait(timeout=20), second.wait(timeout=20)) == (0, 0)
    lines = [line for line in files.log.read_text().splitlines() if not line.startswith("---")]
    assert lines == ["begin", "end", "begin", "end"]


def test_the_error_is_of_the_last_attempt(store: Store, make_job: MakeJob) -> None:
    files = JobFiles(store.directory, make_job().id)
    files.directory.mkdir()
    files.log.write_text("error: old.\n--- attempt 2 begins at now\nepoch 1/3\n")
    assert files.error() is None
    with files.log.open("a") as log:
        log.write("error: new.\nsome line after it\n")
    assert files.error() == "new."


def test_nobody_else_reads_what_a_job_writes(store: Store, make_job: MakeJob) -> None:
    job = make_job()
    launched(store, job).wait()
    directory = JobFiles(store.directory, job.id).directory
    assert oct(directory.stat().st_mode)[-3:] == oct(store.directory.stat().st_mode)[-3:] == "700"
    assert oct((store.directory / "jobs.db").stat().st_mode)[-3:] == "600"


def wait_for_line(path: Path, text: str, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{text!r} never came"
        time.sleep(0.05)
