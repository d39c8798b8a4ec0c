"""What every prediction goes through: body -> images -> one model -> answer. Plain ASGI: it is the hot path."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from contracts.errors import Overloaded
from services.inference import tracing
from services.inference.bodies import Bodies, ClientGone, Receive, Scope
from services.inference.decoding import Decoder
from services.inference.errors import InferenceFailed, NotYet, UnknownModel
from services.inference.fast_path import FastPath
from services.inference.formats import Files, Format, Sent, check_images
from services.inference.keys import Keys
from services.inference.metrics import Metrics
from services.inference.model import Model
from services.inference.models import Models
from services.inference.prediction_log import PredictionLog
from services.inference.settings import Settings
from services.inference.variants import Choice, choose

T = TypeVar("T")

_PATIENCE_S: Final = 0.05
"""From then on the client is watched while its request waits; before, the watching would cost more than it saves."""
_LATE: Final = "late"


class Predictor:
    """Answers predictions on the event loop; holds what they share."""

    def __init__(
        self,
        settings: Settings,
        models: Models,
        metrics: Metrics,
        *,
        decoders: int,
        log: PredictionLog | None = None,
        ask: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`ask` has the registry looked at once more, and returns when what it names is loaded or refused."""
        self._settings = settings
        self._ask = ask
        self._log = log
        self._models = models
        self._metrics = metrics
        self.bodies = Bodies(settings)
        self._decoder = Decoder(threads=decoders, max_pixels=settings.max_pixels)
        self._watching: set[asyncio.Task[None]] = set()

    def fast_path(self, keys: Keys | None) -> FastPath:
        """The short way for what may go it; with `keys`, of who sends one of them."""
        max_bytes = self._settings.max_bytes
        return FastPath(self._models, self._metrics, self._decoder, max_bytes=max_bytes, keys=keys, log=self._log)

    async def predict(self, scope: Scope, receive: Receive, form: Format | None = None) -> tuple[bytes, Model]:
        """The body of the answer, and the one version that gave it.

        Args:
            form: how it is asked and answered; without one, image files for the default model.

        Raises:
            StrideError: what is to be told to the client.
            ClientGone: nothing is.
        """
        started = time.perf_counter()
        form = form or Files(None, scope["query_string"])
        choice = choose(scope["headers"])
        try:
            asked = form.early(self._models, choice)
        except (NotYet, UnknownModel) as error:
            await self._look_again(error)
            asked = form.early(self._models, choice)
        if asked is not None and asked.variant == "champion":  # nobody would stand in for it
            asked.batcher.check(1, within_s=self._settings.deadline_s)
        with self.bodies.arriving(scope, receive) as body:
            await form.read(body)
            expires = time.perf_counter() + self._settings.deadline_s
            # Looked up again: the champion may have moved while the body came in. From here on it is this version.
            try:
                model = form.find(self._models, choice)
            except (NotYet, UnknownModel) as error:
                await self._look_again(error)
                model = form.find(self._models, choice)
            if form.version is not None:
                choice = replace(choice, wish=model.variant)  # asked for by number, no other may stand in for it
            with model.batcher.kept():
                sent = await form.images(model, partial(self._aside, receive, expires))
                check_images(len(sent), self._settings.max_parts)
                model, probabilities = await self.answer(model, choice, sent, receive, expires)
        content = form.write(model, probabilities)
        self._metrics.predictions.labels(model.name).inc(len(probabilities))
        self._metrics.total_s.labels(model.name).observe(time.perf_counter() - started)
        return content, model

    async def answer(
        self, model: Model, choice: Choice, sent: Sent, receive: Receive, expires: float
    ) -> tuple[Model, NDArray[np.float32]]:
        """As `classify`, by the champion where a challenger fails that the client did not ask for; and who it was."""
        try:
            return model, await self.classify(model, sent, receive, expires=expires)
        except (InferenceFailed, Overloaded):
            late = time.perf_counter() > expires
            if late or (stand_in := self._models.stand_in(model, choice)) is None:
                raise
        return stand_in, await self.classify(stand_in, sent, receive, expires=expires)

    async def classify(
        self,
        model: Model,
        sent: Sent,
        receive: Receive,
        *,
        expires: float | None = None,
    ) -> NDArray[np.float32]:
        """Admit, decode and infer: the way that every prediction takes.

        Args:
            sent: image files, at least one; or images as the model takes them, uint8 (n, height, width, channels).
            receive: of the request, to notice when its client goes away.
            expires: on time.perf_counter's clock; the deadline's seconds from now without it.

        Returns:
            float32, (n, classes).

        Raises:
            Overloaded: too many wait already, or the deadline passed.
            ImageError, NotAnImage, TooLarge: a file cannot be decoded.
            InferenceFailed: the model failed on these images.
            ClientGone: the client left before the answer was there.
        """
        rows, batcher, trace = len(sent), model.batcher, tracing.current.get()
        if trace is not None:
            trace.model, trace.version, trace.rows = model.name, model.version, rows
        begun = time.perf_counter()
        expires = begun + self._settings.deadline_s if expires is None else expires
        batcher.admit(rows, within_s=expires - begun)
        try:
            images = await self._decode(model, sent, receive, expires) if isinstance(sent, list) else sent
            future = batcher.submit(images, expires=expires, trace=trace)
            probabilities = await self._wait(future, receive, expires)
        finally:
            batcher.release(rows)
        if model.variant == "challenger" and not np.isfinite(probabilities).all():
            # In time for the champion to answer instead; of its own answers this is told when they are written.
            raise InferenceFailed(f"the challenger of {model.name!r}, version {model.version}, gave no number.")
        self._models.answered(model, images, probabilities)
        if self._log is not None:
            took = time.perf_counter() - begun
            self._log.offer(model, sent if isinstance(sent, list) else [], images, probabilities, took)
        return probabilities

    def close(self) -> None:
        self._decoder.close()

    async def _look_again(self, error: NotYet | UnknownModel) -> None:
        """Have the registry asked for a model that this worker has not heard of; `error` where that cannot help.

        Several workers hear of a first promotion one after the other, and a client of the first soon asks the next.
        """
        if self._ask is None or self._models.registry_error is not None:
            raise error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.deadline_s):
                await self._ask()

    async def _aside(self, receive: Receive, expires: float, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._decoder.pool, work)
        return await self._wait(future, receive, expires)

    async def _decode(self, model: Model, files: list[bytes], receive: Receive, expires: float) -> NDArray[np.uint8]:
        begun = time.perf_counter()
        images = self._decoder.now(files, model.spec)
        if images is None:
            images = await self._wait(
                self._decoder.later(files, model.spec, within_s=self._settings.deadline_s), receive, expires
            )
        ended = time.perf_counter()
        self._metrics.decode_s.labels(model.name).observe(ended - begun)
        if (trace := tracing.current.get()) is not None:
            trace.decoding, trace.decoded = begun, ended
        return images

    async def _wait(self, future: asyncio.Future[T], receive: Receive, expires: float) -> T:
        """What `future` gives; it is cancelled at the deadline, or when the client goes away."""
        timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._watch, future, receive, expires)
        try:
            return await future
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not future.cancelled() or (task and task.cancelling()):
                raise
            if error.args == (_LATE,):
                limit = f"the deadline of {self._settings.deadline_s:g} s passed"
                detail = f"{limit} before the answer was there; try again with less load."
                raise Overloaded(detail, reason="late") from None
            raise ClientGone from None
        finally:
            timer.cancel()

    def _watch(self, future: asyncio.Future[Any], receive: Receive, expires: float) -> None:
        task = asyncio.ensure_future(_until_gone(future, receive, expires - time.perf_counter()))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        future.add_done_callback(lambda _: task.cancel())


async def _until_gone(future: asyncio.Future[Any], receive: Receive, left_s: float) -> None:
    """Cancel the request when its client goes away, and at its deadline."""
    try:
        async with asyncio.timeout(left_s):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        future.cancel(_LATE)
    else:
        future.cancel()
