"""services.inference.bodies: however a body comes in and ends, all of them stay within bounds and give back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import StrideError, TooLarge
from contracts.images import encode_png
from services.inference.bodies import Bodies, ClientGone, Receive
from services.inference.errors import BodiesFull
from services.inference.settings import Settings

Ending = Literal["whole", "gone", "silent", "cancelled"]
PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))


def bodies(**options: Any) -> Bodies:
    limits = {"max_bytes": 100, "max_inflight_bytes": 250, "body_s": 0.02, **options}
    return Bodies(Settings(home=Path(), tracking_uri="", **limits))


def client(chunks: list[int], ending: Ending) -> Receive:
    """A client that sends chunks of these sizes, one each turn of the loop, and then ends."""
    left = list(chunks)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        if left:
            return {"type": "http.request", "body": b"x" * left.pop(0), "more_body": bool(left) or ending != "whole"}
        if ending == "gone":
            return {"type": "http.disconnect"}
        await asyncio.sleep(3600)
        raise AssertionError

    return receive


Request = tuple[list[int], Ending, bool]
REQUEST = st.tuples(
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.sampled_from(["whole", "gone", "silent", "cancelled"]),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(REQUEST, max_size=12))
def test_all_bodies_together_stay_within_the_limit_and_every_byte_is_given_back(requests: list[Request]) -> None:
    async def ask(shared: Bodies, request: Request) -> None:
        chunks, ending, declares = request
        headers = [(b"content-length", b"%d" % sum(chunks))] if declares else []
        with (
            contextlib.suppress(StrideError, ClientGone),
            shared.arriving({"headers": headers}, client(chunks, ending)) as body,
        ):
            assert len(await body.whole()) == sum(chunks)
            assert shared.held <= 250
            await asyncio.sleep(0)  # its prediction

    async def main() -> None:
        shared = bodies()
        tasks = [asyncio.ensure_future(ask(shared, request)) for request in requests]
        for _ in range(3):
            await asyncio.sleep(0)
            assert 0 <= shared.held <= 250
        for task, (_, ending, _) in zip(tasks, requests, strict=True):
            if ending == "cancelled":
                task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert result is None or isinstance(result, asyncio.CancelledError)
        assert shared.held == 0
        assert shared.reading == set()

    asyncio.run(main())


def refused(shared: Bodies, headers: list[tuple[bytes, bytes]], receive: Receive) -> StrideError:
    async def main() -> None:
        with shared.arriving({"headers": headers}, receive) as body:
            await body.images()

    with pytest.raises(StrideError) as error:
        asyncio.run(main())
    return error.value


async def unread() -> dict[str, Any]:
    raise AssertionError("the body was read")


def test_a_declared_length_is_refused_before_anything_is_read() -> None:
    assert isinstance(refused(bodies(), [(b"content-length", b"101")], unread), TooLarge)
    shared = bodies()
    shared.held = 200
    error = refused(shared, [(b"content-length", b"51")], unread)
    assert isinstance(error, BodiesFull)
    assert (error.status, error.retry_after_s) == (429, 1)
    assert "200 of 250 bytes for bodies are taken" in error.message


def test_a_body_without_a_length_is_refused_once_it_has_grown_too_far() -> None:
    assert isinstance(refused(bodies(), [], client([60, 60], "whole")), TooLarge)
    shared = bodies()
    shared.held = 200
    assert isinstance(refused(shared, [], client([40, 40], "whole")), BodiesFull)
    assert shared.held == 200


def test_who_declares_much_and_sends_nothing_takes_no_room() -> None:
    async def main() -> None:
        shared = bodies(body_s=5)
        headers = {"headers": [(b"content-length", b"100")]}

        async def ask(receive: Receive) -> bytes:
            with shared.arriving(headers, receive) as body:
                return await body.whole()

        silent = [asyncio.ensure_future(ask(client([0], "silent"))) for _ in range(50)]
        await asyncio.sleep(0)
        assert len(await ask(client([100], "whole"))) == 100
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)

    asyncio.run(main())


def test_many_large_uploads_at_once_are_bounded_in_total_over_real_sockets(
    start_service: Callable[..., Any], tiny: Any, tmp_path: Path
) -> None:
    limits = {"STRIDE_MAX_BYTES": "1000000", "STRIDE_MAX_INFLIGHT_BYTES": "2000000"}
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")}, **limits)
    service.wait()
    large = PNG + b"\0" * 900_000
    head = b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(large), large)
    declared = head + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(large)

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", service.port), timeout=20)

    def asks_for_room() -> bytes:
        with connect() as client:
            client.sendall(declared)
            return client.recv(4096)

    with connect() as first, connect() as second:
        first.sendall(chunked)
        second.sendall(chunked)
        until = time.monotonic() + 20
        while not (refused := asks_for_room()).startswith(b"HTTP/1.1 429 "):  # until both have come in
            assert refused == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert time.monotonic() < until
        assert b"retry-after: 1\r\n" in refused
        with connect() as third:
            third.sendall(chunked)  # without a length: found out as it grows
            assert third.recv(4096).startswith(b"HTTP/1.1 429 ")
        assert httpx.post(f"{service.url}/v1/predict", content=PNG).status_code == 200
        for client in (first, second):
            client.sendall(b"0\r\n\r\n")
            assert client.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert asks_for_room() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert httpx.post(f"{service.url}/v1/predict", content=large).status_code == 200
