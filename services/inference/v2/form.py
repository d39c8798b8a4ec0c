"""A request to infer, from its headers to its answer."""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contracts.errors import MalformedBody
from services.inference.bodies import Body
from services.inference.formats import Aside, Format, Sent
from services.inference.model import Model
from services.inference.models import Models
from services.inference.v2 import response, tensors, unpack
from services.inference.v2.request import Request, parse
from services.inference.variants import Choice

_LENGTH: Final = b"inference-header-content-length"
_INLINE_BYTES: Final = 16_384
"""Parsing a JSON of this size takes about as long as a hop to a thread and back."""


class Tensors(Format):
    """Tensors in and out."""

    def __init__(self, name: str, version: str | None, headers: list[tuple[bytes, bytes]]) -> None:
        self.version = version
        self.headers = []
        self._name = name
        self._sent_headers = headers
        self._packed = False
        self._json_bytes: int | None = None
        # Without JSON there is nothing that could ask for outputs: they come in binary, as the input did.
        self._request = Request(None, (), (), binary=True)

    def early(self, models: Models, choice: Choice) -> Model:
        for key, value in self._sent_headers:
            if key == _LENGTH:
                if not (value.isdigit() and len(value) < 16):
                    shown = value[:40].decode("latin-1")
                    raise MalformedBody(f"Inference-Header-Content-Length is {shown!r}; give the bytes of the JSON.")
                self._json_bytes = int(value)
            elif key == b"content-encoding":
                self._packed = unpack.check(value)
        return self.find(models, choice)

    async def read(self, body: Body) -> None:
        if self._json_bytes == 0 and body.content_type.startswith(b"application/json"):
            raise MalformedBody(
                "Inference-Header-Content-Length is 0 and the Content-Type is JSON; leave out the first."
            )
        self._body = body
        self._data = await body.whole()

    def find(self, models: Models, choice: Choice) -> Model:
        if self.version is not None:
            return models.version(self._name, self.version)
        return models.get(self._name, choice)

    async def images(self, model: Model, aside: Aside) -> Sent:
        if self._packed:
            self._data = await aside(partial(unpack.unpack, self._data, most=self._body.max_bytes))
            self._body.hold(len(self._data))
        if self._json_bytes == 0:
            return tensors.bare(self._data, model)
        take = partial(self._take, model)
        parsed = len(self._data) if self._json_bytes is None else self._json_bytes
        sent: Sent = take() if parsed <= _INLINE_BYTES else await aside(take)
        return sent

    def write(self, model: Model, probabilities: NDArray[np.float32]) -> bytes:
        body, json_bytes = response.write(self._request, model, probabilities)
        if json_bytes is None:
            self.headers = [(b"content-type", b"application/json")]
        else:
            self.headers = [(b"content-type", b"application/octet-stream"), (_LENGTH, b"%d" % json_bytes)]
        return body

    def _take(self, model: Model) -> Sent:
        request = parse(self._data, self._json_bytes)
        response.check(request.outputs, model)
        sent = tensors.sent(request.inputs, model, most=self._body.max_parts)
        # The lists of the JSON are dropped here: they are many times as large as what came of them.
        self._request = Request(request.id, (), request.outputs, request.binary)
        return sent
