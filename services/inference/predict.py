"""The route that predicts: body -> images -> one model -> answer. Plain ASGI: it is the hot path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from contracts.errors import Overloaded, RequestError, TooLarge
from services.inference import answers, decoding
from services.inference.errors import SlowBody
from services.inference.forms import Form, is_form
from services.inference.metrics import Metrics
from services.inference.models import Model, Models
from services.inference.settings import Settings

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Scope = MutableMapping[str, Any]

DEFAULT_TOP_K: Final = 5
_PATIENCE_S: Final = 0.05
"""From then on the client is watched while its request waits; before, the watching would cost more than it saves."""


class ClientGone(Exception):
    """The client closed the connection: there is nobody to answer."""


class Predictor:
    """Answers predictions on the event loop; holds what they share."""

    def __init__(self, settings: Settings, models: Models, metrics: Metrics, *, decoders: int) -> None:
        self._settings = settings
        self._models = models
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self._reading: set[asyncio.Timeout] = set()
        self._cut_at = float("inf")
        self._watching: set[asyncio.Task[None]] = set()

    async def predict(self, scope: Scope, receive: Receive, name: str | None) -> tuple[bytes, Model]:
        """The JSON body of the answer, and the one version that gave it.

        Raises:
            StrideError: what is to be told to the client.
            ClientGone: nothing is.
        """
        started = time.perf_counter()
        model = self._models.get(name)
        _top_k(scope["query_string"], model)  # refused before the body is read
        files = await self._files(scope, receive)
        # Looked up again: the champion may have moved while the body came in. From here on it is this version.
        model = self._models.get(name)
        top_k = _top_k(scope["query_string"], model)
        rows, batcher = len(files), model.batcher
        expires = time.perf_counter() + self._settings.deadline_s
        batcher.admit(rows)
        try:
            begun = time.perf_counter()
            images = await self._decode(files, model, expires)
            self._metrics.decode_s.labels(model.name).observe(time.perf_counter() - begun)
            probabilities = await self._infer(model, images, receive, expires)
        finally:
            batcher.release(rows)
        body = answers.predictions(model, probabilities, top_k)
        self._metrics.predictions.labels(model.name).inc(rows)
        self._metrics.total_s.labels(model.name).observe(time.perf_counter() - started)
        return body, model

    def cut_bodies(self, after_s: float) -> None:
        """The service ends: bodies that are still coming in, or begin to, have this long."""
        self._cut_at = asyncio.get_running_loop().time() + after_s
        for reading in self._reading:
            if not reading.expired():
                reading.reschedule(min(self._cut_at, reading.when() or self._cut_at))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _files(self, scope: Scope, receive: Receive) -> list[bytes]:
        """The bytes of every image of the body; limits are enforced while it arrives."""
        content_type, declared = b"", b""
        for key, value in scope["headers"]:
            if key == b"content-type":
                content_type = value
            elif key == b"content-length":
                declared = value
        if declared.isdigit() and int(declared) > self._settings.max_bytes:
            raise self._too_large(f"{int(declared):,}")
        form = Form(content_type, max_parts=self._settings.max_parts) if is_form(content_type) else None
        try:
            ends = min(self._cut_at, asyncio.get_running_loop().time() + self._settings.body_s)
            async with asyncio.timeout_at(ends) as reading:
                self._reading.add(reading)
                try:
                    body = await self._read(receive, form)
                finally:
                    self._reading.discard(reading)
        except TimeoutError as error:
            raise SlowBody("the body did not arrive in time; send it faster, or a smaller one.") from error
        return [body] if form is None else form.finish()

    async def _read(self, receive: Receive, form: Form | None) -> bytes:
        message = await receive()
        chunk: bytes = message.get("body", b"")
        if form is None and not message.get("more_body") and message["type"] == "http.request":
            if len(chunk) > self._settings.max_bytes:
                raise self._too_large("more")
            return chunk
        size, chunks = 0, bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._settings.max_bytes:
                raise self._too_large("more")
            if form is None:
                chunks += chunk
            elif chunk:
                form.feed(chunk)
            if not message.get("more_body"):
                return bytes(chunks)
            message = await receive()

    async def _decode(self, files: list[bytes], model: Model, expires: float) -> NDArray[np.uint8]:
        left_s = expires - time.perf_counter()
        try:
            return await decoding.decode(
                files, model.spec, max_pixels=self._settings.max_pixels, pool=self._pool, within_s=left_s
            )
        except TimeoutError as error:
            raise self._too_late() from error

    async def _infer(self, model: Model, images: NDArray[np.uint8], receive: Receive, expires: float) -> Any:
        loop = asyncio.get_running_loop()
        future = model.batcher.submit(images, expires=expires)
        timer = loop.call_later(_PATIENCE_S, self._watch, future, receive, expires)
        try:
            return await future
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if future.cancelled() and not (task and task.cancelling()):
                raise ClientGone from None
            raise
        finally:
            timer.cancel()

    def _watch(self, future: asyncio.Future[Any], receive: Receive, expires: float) -> None:
        task = asyncio.ensure_future(self._until_gone(future, receive, expires - time.perf_counter()))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        future.add_done_callback(lambda _: task.cancel())

    async def _until_gone(self, future: asyncio.Future[Any], receive: Receive, left_s: float) -> None:
        """Cancel the request when its client goes away, and fail it at its deadline."""
        try:
            async with asyncio.timeout(left_s):
                while (await receive())["type"] != "http.disconnect":
                    pass
        except TimeoutError:
            if not future.done():
                future.set_exception(self._too_late())
        else:
            future.cancel()

    def _too_late(self) -> Overloaded:
        limit = f"the deadline of {self._settings.deadline_s:g} s passed"
        return Overloaded(f"{limit} before the answer was there; try again with less load.")

    def _too_large(self, size: str) -> TooLarge:
        limit = f"{self._settings.max_bytes:,}"
        return TooLarge(f"the body has {size} bytes where {limit} are allowed; send smaller or fewer images.")


def _top_k(query: bytes, model: Model) -> int:
    """`top_k` of the query string: from 1 to the number of classes.

    Raises:
        RequestError: out of range, not a number, given twice, or beside an unknown parameter.
    """
    classes = len(model.labels)
    if not query:
        return min(DEFAULT_TOP_K, classes)
    try:
        given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=16)
    except ValueError as error:
        raise RequestError("the query string has too many parameters; only top_k is known.") from error
    unknown = next((key for key, _ in given if key != "top_k"), None)
    if unknown is not None:
        raise RequestError(f"the query parameter {unknown[:60]!r} is not known; only top_k is.")
    if len(given) > 1:
        raise RequestError(f"top_k is given {len(given)} times; give it once.")
    if not given:
        return min(DEFAULT_TOP_K, classes)
    text = given[0][1]
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= classes):
        raise RequestError(f"top_k is {text[:60]!r}; give a whole number from 1 to {classes}.")
    return int(text)
