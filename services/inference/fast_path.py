"""The fast path: one small image that came in one piece, answered by the champion without parser, scope and task.

Where networks are tiny, the way through the server costs more than the answer. So what comes in one round of the event
loop is decoded, run as a batch and answered in the next, if the batch may hold up the loop for so long (see batcher).
It only ever answers 200: whatever is unusual or fails on the way, it gives back, and the usual way answers that, with
its deadlines, errors and traces.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from contracts.errors import StrideError, Unauthorized
from services.inference import answers, logs
from services.inference.awake import Awake
from services.inference.decoding import Decoder
from services.inference.formats import DEFAULT_TOP_K
from services.inference.keys import Keys
from services.inference.metrics import Metrics
from services.inference.model import Model
from services.inference.models import Models
from services.inference.piece import Fields, Piece, ServerLines
from services.inference.prediction_log import PredictionLog

_OK: Final = b"HTTP/1.1 200 OK\r\n"
Image = NDArray[np.uint8]


class Asker(Protocol):
    """Who waits for an answer: a connection."""

    def answer(self, data: bytes) -> None:
        """Send a whole answer, after which the connection is at rest."""

    def take_back(self) -> None:
        """The piece is to be parsed, and to go the usual way."""


class Asked:
    """A piece and who sent it."""

    __slots__ = ("asker", "image", "name", "piece", "since")

    def __init__(self, asker: Asker, piece: Piece, name: str | None, image: bytes) -> None:
        self.asker: Asker | None = asker
        """None: it has left, or its piece has gone the usual way."""
        self.piece = piece
        self.name = name
        self.image = image
        self.since = time.perf_counter()


class FastPath:
    """Belongs to the event loop."""

    def __init__(
        self,
        models: Models,
        metrics: Metrics,
        decoder: Decoder,
        *,
        max_bytes: int,
        keys: Keys | None = None,
        log: PredictionLog | None = None,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._decoder = decoder
        self._max_bytes = max_bytes
        self._keys = keys
        self._log = log
        self._lines = ServerLines()
        self._awake = Awake()
        self._round: list[Asked] = []
        self._nowhere = contextvars.Context()  # of no request: a round belongs to several

    def take(self, piece: Piece, asker: Asker, together: int = 1) -> Asked | None:
        """What is to be begun; None where the usual way has to be gone.

        Args:
            together: as many will at least be begun in its round.
        """
        found = piece.one_image()
        if found is None or len(found[1]) > self._max_bytes or (model := self._models.alone(found[0])) is None:
            return None
        # To be given back later would cost both ways; and what waits here, no limit of the queue would see.
        rows = min(max(len(self._round) + 1, together), model.engine.max_batch)
        if rows > model.batcher.piece or not model.batcher.takes_now(rows):
            return None
        if self._keys is not None:
            try:
                self._keys.check(piece.head.keys)
            except Unauthorized:
                return None
        return Asked(asker, piece, *found)

    def begin(self, asked: Asked, server: Fields) -> None:
        """Answer it once the event loop has read what has come in with it.

        Args:
            server: the fields that the server adds to every answer.
        """
        self._awake.came()
        if not self._round:
            asyncio.get_running_loop().call_soon(self._answer_round, server, context=self._nowhere)
        self._round.append(asked)

    def _answer_round(self, server: Fields) -> None:
        waiting, self._round = self._round, []
        by_name: dict[str | None, list[Asked]] = {}
        for asked in waiting:
            by_name.setdefault(asked.name, []).append(asked)
        for name, together in by_name.items():
            model = self._models.alone(name)
            if model is None:
                _give_back(together)
                continue
            most = model.engine.max_batch
            for at in range(0, len(together), most):
                self._answer(model, together[at : at + most], server)
        if not self._round:
            self._awake.answered()

    def _answer(self, model: Model, together: list[Asked], server: Fields) -> None:
        if not model.batcher.takes_now(len(together)):
            return _give_back(together)
        decoded = self._decode(model, [asked for asked in together if asked.asker is not None])
        if not decoded:
            return None
        images = [image for _, image, _ in decoded]
        probabilities = model.batcher.run_now(images, [ready for _, _, ready in decoded])
        if probabilities is None:
            return _give_back([asked for asked, _, _ in decoded])
        head = _OK + self._lines(server) + model.head
        for row, (asked, image, _) in enumerate(decoded):
            self._send(model, asked, image, probabilities[row : row + 1], head)
        return None

    def _decode(self, model: Model, together: list[Asked]) -> list[tuple[Asked, Image, float]]:
        """Who asked, the image, and when it was ready."""
        decoded = []
        began = time.perf_counter()
        for asked in together:
            try:
                image = self._decoder.now([asked.image], model.spec)
            except StrideError:
                image = None
            if image is None:
                _give_back([asked])
                continue
            ready = time.perf_counter()
            self._metrics.decode_s.labels(model.name).observe(ready - began)
            decoded.append((asked, image, ready))
            began = ready
        return decoded

    def _send(self, model: Model, asked: Asked, image: Image, probabilities: NDArray[np.float32], head: bytes) -> None:
        if asked.asker is None:
            return None
        try:
            content = answers.predictions(model, probabilities, min(DEFAULT_TOP_K, len(model.labels)))
        except StrideError:
            return _give_back([asked])
        self._models.answered(model, image, probabilities)
        request_id = asked.piece.request_id
        took = time.perf_counter() - asked.since
        if self._log is not None:
            named = logs.request_id.set(request_id.decode())
            self._log.offer(model, [asked.image], image, probabilities, took)
            logs.request_id.reset(named)
        metrics = self._metrics
        metrics.requests.labels("predict", "2xx").inc()
        metrics.predictions.labels(model.name).inc()
        metrics.total_s.labels(model.name).observe(took)
        asker, asked.asker = asked.asker, None
        asker.answer(b"%b%d\r\nx-request-id: %b\r\n\r\n%b" % (head, len(content), request_id, content))
        return None


def _give_back(together: list[Asked]) -> None:
    for asked in together:
        if asked.asker is not None:
            asker, asked.asker = asked.asker, None
            asker.take_back()
