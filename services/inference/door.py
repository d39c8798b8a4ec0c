"""More new connections a round of the event loop than one.

libuv takes a single connection from a listener each time it looks. Rounds that take 15 ms let in some 70 clients a
second: the others would wait in the kernel for seconds, neither answered nor refused. So with one connection more are
let in, by the number of requests that were begun in the last round. A loop that has little to do leaves them to libuv,
and with it to the other workers, which listen on the same socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Sequence

import uvicorn


class Door:
    """Belongs to the event loop."""

    def __init__(self, listeners: Sequence[socket.socket]) -> None:
        self._listeners = listeners
        self._coming: set[asyncio.Task[object]] = set()

    def let_in(self, most: int, make: Callable[[], asyncio.Protocol]) -> None:
        """Take up to so many connections that wait, each for a protocol that `make` makes."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            # Nobody waits, the listener is closed, or there are no more files: libuv meets that as well.
            with contextlib.suppress(OSError):
                while most > 0:
                    sock, _ = listener.accept()
                    most -= 1
                    sock.setblocking(False)
                    task = loop.create_task(self._bring(loop, make, sock))
                    self._coming.add(task)
                    task.add_done_callback(self._coming.discard)

    async def close(self) -> None:
        """Wait for those who are on the threshold: the server ends what it knows of."""
        if self._coming:
            await asyncio.wait(self._coming)

    async def _bring(
        self, loop: asyncio.AbstractEventLoop, make: Callable[[], asyncio.Protocol], sock: socket.socket
    ) -> None:
        try:
            await loop.connect_accepted_socket(make, sock)
        except OSError:  # the client has left already
            sock.close()


def attend(tell: Callable[[Door | None], None]) -> None:
    """Have the server that BentoML makes in this process tell of its door, and of none when it stops listening."""

    class Attended(uvicorn.Server):
        door: Door | None = None

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not self.config.is_ssl:  # whose handshake is libuv's connection's alone
                self.door = Door(sockets or ())
                tell(self.door)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            tell(None)
            if self.door is not None:
                await self.door.close()
            await super().shutdown(sockets)

    uvicorn.Server = Attended  # type: ignore[misc]
