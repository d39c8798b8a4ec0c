"""The way to Ray: a client of the cluster, or of a head of our own, which is started where there is none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from services.training.jobs import log
from services.training.jobs.errors import RayError
from services.training.jobs.head import OwnHead
from services.training.jobs.ray_jobs import RayJobs

_BACKOFF_S: Final = 5.0
"""After a head that could not be started."""
_SILENCE_S: Final = 20.0
"""How long a head of our own may be alive and not answer before it is replaced."""


class RayLink:
    """Holds the one client that is in use.

    Args:
        head: The Ray of our own; None where `cluster` is used.
        cluster: The address of a cluster's dashboard.
        connect: Makes the client for an address.
    """

    def __init__(self, *, head: OwnHead | None, cluster: str | None, connect: Callable[[str], RayJobs]) -> None:
        self.head = head
        self._cluster, self._connect = cluster, connect
        self.client: RayJobs | None = None
        """The client in use; None where there is none yet, or none any more."""
        self.problem: str | None = "Ray is being started"
        """Why no job can be begun or followed now; None where all is well."""
        self._answered = time.monotonic()

    async def check(self) -> None:
        """Raise RayError unless a job could be begun now."""
        if self.problem is not None or self.client is None:
            raise RayError(self.problem or "Ray is being started")
        await self.client.answers()

    async def reach(self) -> RayJobs:
        """The client of a Ray that answers; a head of our own is started where there is none.

        Raises:
            RayError: there is none, and why.
        """
        if self.client is not None and (self.head is None or self.head.running() == self.client.address):
            return self.client
        await self.close()
        if self.head is None:
            ray = self._connect(self._cluster or "")
            try:
                await ray.answers()
            except RayError:
                await ray.close()
                raise
            self.client = ray
            return ray
        address = self.head.running()
        if address is not None:
            log.info("ray_taken_over", address=address)
        else:
            self.say("Ray is being started")
            try:
                address = await self.head.start()
            except RayError:
                await asyncio.sleep(_BACKOFF_S)
                raise
            log.info("ray_started", address=address)
        self._answered = time.monotonic()
        self.client = self._connect(address)
        return self.client

    def well(self) -> None:
        """Ray has answered whatever it was asked."""
        self._answered = time.monotonic()
        self.problem = None

    async def away(self, error: RayError) -> None:
        """Ray does not answer: note why, and end a head of our own that is alive and silent for long."""
        self.say(error.message)
        if self.head is not None and self.client is not None and time.monotonic() - self._answered > _SILENCE_S:
            await self.close()
            await asyncio.to_thread(self.head.end)

    def say(self, problem: str) -> None:
        """Note why no job can be begun; the log is told once."""
        if problem != self.problem:
            log.warning("cannot_run_jobs", reason=problem)
        self.problem = problem

    async def close(self) -> None:
        if self.client is not None:
            await self.client.close()
            self.client = None
