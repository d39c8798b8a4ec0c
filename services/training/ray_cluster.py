"""A connection to Ray: the cluster at an address, or one that is started within this process."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from contracts.errors import DeviceError

_QUIET: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_OWN: Final = ("auto", "local")
"""Addresses that Ray finds out for itself."""
_REACHED_S: Final = 5.0


@contextmanager
def connected(
    address: str | None, *, otherwise: str, embedded: Mapping[str, Any] | None = None
) -> Iterator[dict[str, float]]:
    """A connection to a cluster; gives what the cluster has (`CPU`, `GPU`, bytes of `memory`).

    Args:
        address: As in RAY_ADDRESS; None starts a Ray of this process's own, which ends with the connection.
        otherwise: What unsetting RAY_ADDRESS gives the user instead.
        embedded: What `ray.init` is given for a Ray of its own.

    Raises:
        DeviceError: the cluster does not answer, or no Ray can be started here.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if address:
        _reach(address, otherwise)
    import ray

    settings = {} if address else embedded or {}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level=logging.ERROR, **settings)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
        where = f"RAY_ADDRESS {address!r}" if address else "the embedded Ray"
        advice = "see its logs, or unset RAY_ADDRESS" if address else "see its logs"
        raise DeviceError(f"{where} cannot be used ({reason}); {advice}.") from error
    try:
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield there
    finally:
        ray.shutdown()


def _reach(address: str, otherwise: str) -> None:
    """Ray itself looks for a head for minutes."""
    if address in _OWN:
        return
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if parts.hostname is None or parts.port is None:
            raise ValueError("no host and port")
        socket.create_connection((parts.hostname, parts.port), timeout=_REACHED_S).close()
    except (OSError, ValueError) as error:
        raise DeviceError(
            f"RAY_ADDRESS is {address!r}: no Ray cluster answers there ({error}); start one with `ray start --head`, "
            f"or unset it for {otherwise}."
        ) from error
