"""One promotion, trial or tuning of a model at a time on a machine."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote

from contracts import places
from contracts.errors import RegistryError
from pipelines.export import Say, silent

LOCK_SECONDS: Final = 900.0
"""How long a promotion waits for another one of the same model."""


@contextmanager
def locked(model: str, *, say: Say = silent, timeout: float = LOCK_SECONDS) -> Iterator[None]:
    """Hold the machine's lock for promotions of a model; it goes with the process, however that ends.

    Raises:
        RegistryError: another promotion has held it for `timeout` seconds.
    """
    path = places.home() / "locks" / f"promotion-{quote(model, safe='')}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with path.open("w") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    detail = f"another promotion has held {path} for {timeout:.0f} s"
                    raise RegistryError(f"model '{model}': {detail}; wait for it, or end it.") from error
                if not waiting:
                    say(f"waiting for another promotion of {model}")
                    waiting = True
                time.sleep(0.05)  # flock has no wait with a deadline
        yield
