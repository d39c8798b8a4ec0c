"""`python -m services.training.jobs.launch DIRECTORY`: what Ray starts for a job. It becomes the job's command.

DIRECTORY is the job's: launch.json says what to run, `log` gets its standard error, answer.json its standard output.
One attempt at a time: the lock is held until the process of the attempt before has ended. The command takes this
process' place, and the lock with it, so that a signal reaches it once, and its exit code is what Ray sees.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from pathlib import Path
from typing import Final

WAIT_S: Final = 60.0
"""Ray ends the processes of a lost attempt within seconds; what lives longer than this is not ended by anybody."""
BUSY: Final = 75
"""The exit code when they live longer (EX_TEMPFAIL)."""


def main(directory: Path) -> None:
    spec = json.loads((directory / "launch.json").read_text())
    lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    log = os.open(directory / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    deadline = time.monotonic() + WAIT_S
    while not _locked(lock):
        if time.monotonic() > deadline:
            os.write(log, f"error: the attempt before still runs after {WAIT_S:g} s; end its process.\n".encode())
            sys.exit(BUSY)
        time.sleep(0.2)
    answer = os.open(directory / "answer.json", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    os.write(log, f"--- attempt {spec['attempt']} begins at {now}\n".encode())
    os.dup2(answer, 1)
    os.dup2(log, 2)
    os.set_inheritable(lock, True)
    os.chdir(spec["directory"])
    for name in spec["unset"]:
        os.environ.pop(name, None)
    os.environ["STRIDE_RUNS_FILE"] = str(directory / "runs")
    os.execv(spec["command"][0], spec["command"])  # noqa: S606 - our own command, without a shell


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
