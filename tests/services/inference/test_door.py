"""services.inference.door: as many new connections a round as the loop has work for, not one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

import pytest
import uvicorn
import uvloop

from services.inference.connection import Connection
from services.inference.door import Door, attend


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        greeted = cast("asyncio.Transport", transport)
        greeted.write(b"hello")
        greeted.close()


def listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setblocking(False)
    return listener


def test_so_many_and_no_more_of_those_who_wait_are_let_in() -> None:
    async def main() -> list[bool]:
        with listening() as listener:
            clients = [socket.create_connection(listener.getsockname()) for _ in range(50)]
            Door([listener]).let_in(40, Greeter)
            await asyncio.sleep(0.3)
            greeted = []
            for client in clients:
                client.setblocking(False)
                try:
                    greeted.append(client.recv(5) == b"hello")
                except BlockingIOError:
                    greeted.append(False)
                client.close()
            return greeted

    assert uvloop.run(main()) == [True] * 40 + [False] * 10


def test_where_nobody_waits_or_the_listener_is_closed_nothing_happens() -> None:
    async def main() -> None:
        listener = listening()
        door = Door([listener])
        door.let_in(5, Greeter)
        listener.close()
        door.let_in(5, Greeter)
        await asyncio.sleep(0)
        assert not door._coming

    uvloop.run(main())


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], uvicorn.Server]:
    """A server as BentoML makes it, with the protocol and the door of the service."""
    monkeypatch.setattr(uvicorn, "Server", uvicorn.Server)
    monkeypatch.setattr(Connection, "door", None)
    attend(lambda door: setattr(Connection, "door", door))

    def make(app: Any) -> uvicorn.Server:
        config = uvicorn.Config(app, http=Connection, lifespan="off", log_level="warning", loop="uvloop")
        return uvicorn.Server(config)

    return make


def test_a_busy_loop_takes_a_crowd_in_a_few_rounds(server: Callable[[Any], uvicorn.Server]) -> None:
    """Counted in rounds of requests, not in time."""
    begun: list[str] = []
    crowd, busy = 64, 16

    async def app(scope: Any, receive: Any, send: Any) -> None:
        begun.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def main() -> int:
        listener = listening()
        running = server(app)
        serving = asyncio.create_task(running.serve(sockets=[listener]))
        while not running.started:
            await asyncio.sleep(0.01)
        address = listener.getsockname()
        regulars = [await asyncio.open_connection(*address) for _ in range(busy)]
        clients = [socket.create_connection(address) for _ in range(crowd)]
        for client in clients:
            client.sendall(b"GET /crowd HTTP/1.1\r\nHost: x\r\n\r\n")
        rounds = 0
        while begun.count("/crowd") < crowd and rounds < 500:
            for _, writer in regulars:  # a round that begins as many requests
                writer.write(b"GET /regular HTTP/1.1\r\nHost: x\r\n\r\n")
            for reader, _ in regulars:
                await reader.readuntil(b"\r\n\r\n")
            rounds += 1
        for client in clients:
            client.close()
        for _, writer in regulars:
            writer.close()
        running.should_exit = True
        await serving
        assert Connection.door is None
        return rounds

    assert uvloop.run(main()) <= 12  # one connection a round of the loop took 33
