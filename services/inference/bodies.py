"""Request bodies as they come in, and what bounds them: each one's bytes and time, and the bytes of all together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from contracts.errors import SlowBody, TooLarge
from services.inference.errors import BodiesFull
from services.inference.forms import Form, is_form
from services.inference.settings import Settings

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Scope = MutableMapping[str, Any]


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


class Bodies:
    """What the bodies of one worker share; belongs to the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.held = 0
        """Bytes that have come in for requests that are not answered yet, at most `max_inflight_bytes`."""
        self.reading: set[asyncio.Timeout] = set()
        self.cut_at = float("inf")
        """On the loop's clock: when no body is waited for any more."""

    def arriving(self, scope: Scope, receive: Receive) -> Body:
        """The body of one request, to be used as a context: on its way out the bytes are given back."""
        return Body(self, scope["headers"], receive)

    def cut(self, after_s: float) -> None:
        """The service ends: bodies that are still coming in, or begin to, have this long."""
        self.cut_at = asyncio.get_running_loop().time() + after_s
        for reading in self.reading:
            if not reading.expired():
                reading.reschedule(min(self.cut_at, reading.when() or self.cut_at))


class Body:
    """One request's body.

    Raises (from both readers):
        TooLarge: more bytes than one request may have; told by its length before anything is read, or as it grows.
        BodiesFull: there is no room for them beside the bodies of the other requests.
        SlowBody: not whole in time.
        ClientGone: the client left before it was whole.
    """

    __slots__ = ("_bodies", "_held", "_receive", "content_type", "declared", "fields", "max_bytes", "max_parts")

    def __init__(self, bodies: Bodies, headers: list[tuple[bytes, bytes]], receive: Receive) -> None:
        self._bodies = bodies
        self._receive = receive
        self._held = 0
        self.max_bytes = bodies.settings.max_bytes
        self.max_parts = bodies.settings.max_parts
        self.fields: dict[str, bytearray] = {}
        """The values that stood in the form beside its images."""
        self.content_type = b""
        self.declared: int | None = None
        """Its Content-Length, None when it comes in chunks."""
        for key, value in headers:
            if key == b"content-type":
                self.content_type = value
            elif key == b"content-length" and value.isdigit():
                self.declared = int(value)

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.held -= self._held

    async def images(self, fields: Collection[str] = ()) -> list[bytes]:
        """The images of the request: the whole body, or the parts of a form, in their order.

        Args:
            fields: what else may stand in the form.

        Raises:
            MalformedBody, RequestError: the form cannot be read, or holds something else.
        """
        self._check_declared()
        if not is_form(self.content_type):
            return [await self._read(None)]
        form = Form(self.content_type, max_parts=self.max_parts, fields=fields)
        self.fields = form.fields
        await self._read(form)
        return form.finish()

    async def whole(self) -> bytes:
        """All of it, whatever it is."""
        self._check_declared()
        return await self._read(None)

    def hold(self, count: int) -> None:
        """Take room for `count` bytes more, of what the body was unpacked to."""
        self._check_room(count)
        self._bodies.held += count
        self._held += count

    def _check_declared(self) -> None:
        if self.declared is None:
            return
        if self.declared > self._bodies.settings.max_bytes:
            raise self._too_large(f"{self.declared:,}")
        # Only a look: room is taken by bytes that are here, or a few clients could book all of it and send nothing.
        self._check_room(self.declared)

    def _check_room(self, count: int) -> None:
        bodies = self._bodies
        if bodies.held + count > bodies.settings.max_inflight_bytes:
            limit = f"{bodies.held:,} of {bodies.settings.max_inflight_bytes:,} bytes for bodies are taken"
            detail = f"there is no room for this body now: {limit}; try again in 1 s."
            raise BodiesFull(detail, reason="bodies_full")

    async def _read(self, form: Form | None) -> bytes:
        bodies = self._bodies
        try:
            ends = min(bodies.cut_at, asyncio.get_running_loop().time() + bodies.settings.body_s)
            async with asyncio.timeout_at(ends) as reading:
                bodies.reading.add(reading)
                try:
                    return await self._collect(form)
                finally:
                    bodies.reading.discard(reading)
        except TimeoutError as error:
            raise SlowBody("the body did not arrive in time; send it faster, or a smaller one.") from error

    async def _collect(self, form: Form | None) -> bytes:
        """The bytes; none where they go into `form`."""
        whole: bytes | bytearray = b""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk: bytes = message.get("body", b"")
            if self._held + len(chunk) > self._bodies.settings.max_bytes:
                raise self._too_large("more")
            self.hold(len(chunk))
            more = message.get("more_body")
            if form is not None:
                form.feed(chunk)
            elif not more and not whole:  # most come in one piece, which needs no copy
                return chunk
            else:
                whole = whole or bytearray()
                whole += chunk
            if not more:
                return bytes(whole)

    def _too_large(self, size: str) -> TooLarge:
        limit = f"{self._bodies.settings.max_bytes:,}"
        return TooLarge(f"the body has {size} bytes where {limit} are allowed; send smaller or fewer images.")
