"""Where the trials run: an embedded Ray of this machine, or the cluster at RAY_ADDRESS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from contracts.errors import DeviceError
from services.training.ray_cluster import connected

OBJECTS_BYTES: Final = 80_000_000
"""Of the embedded Ray's object store: trials exchange numbers."""
_QUIET: Final = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints boxes, however quiet it is told to be
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial whose loss is not finite reports no metric
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep at once; it goes on from its ledger
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # Ray's own state of the sweep is not used
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}


@contextmanager
def running(*, cpus: float, gpus: float | None) -> Iterator[float]:
    """A Ray to run trials on, which is left again at the end; gives the GPUs of a trial.

    Args:
        cpus: That a trial takes.
        gpus: That a trial takes, parts of one allowed; None is one where there are any.

    Raises:
        DeviceError: RAY_ADDRESS does not answer, or a trial needs more than there is.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    embedded = {"num_cpus": _cpus(), "include_dashboard": False, "object_store_memory": OBJECTS_BYTES}
    with connected(os.environ.get("RAY_ADDRESS"), otherwise="an embedded one", embedded=embedded) as there:
        have_cpus, have_gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        wanted = gpus if gpus is not None else min(1.0, have_gpus)
        for name, asked, have in (("cpus", cpus, have_cpus), ("gpus", wanted, have_gpus)):
            if asked > have:
                raise DeviceError(
                    f"--{name} {asked:g} for each trial is more than the {have:g} that Ray has; give it fewer."
                )
        yield wanted


def _cpus() -> int:
    """That this process may use: a container's share may be less than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
