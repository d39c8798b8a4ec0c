"""Warnings about a data set, each given once a process: one `stride ship` loads its data to fit and again to export."""

from __future__ import annotations

import functools
import logging


@functools.cache
def warn(log: logging.Logger, text: str) -> None:
    """Log a warning unless this process has given it before; `text` names the file or the data set that it is about."""
    log.warning("%s", text)
