"""Jobs that ended long ago are forgotten, with their logs: by their number and by their age.

A job that waits or runs is never forgotten. What it made, runs, models and checkpoints, is MLflow's and stays.
"""

from __future__ import annotations

import shutil
import time
from typing import Final

from services.training.jobs import log
from services.training.jobs.files import JobFiles
from services.training.jobs.store import Store

DAY_S: Final = 86_400.0


def tidy(store: Store, *, most: int, days: float) -> int:
    """Forget ended jobs beyond the newest `most`, and those that ended more than `days` ago; how many that were.

    The files go first: killed in between, the job is still known, and forgotten the next time. One whose files cannot
    be removed stays, with a warning.

    Raises:
        StoreError: the data base cannot be read or written.
    """
    gone = []
    for job_id in store.expired(most=most, before=time.time() - days * DAY_S):
        try:
            shutil.rmtree(JobFiles(store.directory, job_id).directory)
        except FileNotFoundError:  # it was cancelled before it had any
            pass
        except OSError as error:
            log.warning("job_not_forgotten", job=job_id, reason=f"{error.strerror or error}")
            continue
        gone.append(job_id)
    store.forget(gone)
    if gone:
        log.info("jobs_forgotten", jobs=len(gone))
    return len(gone)
