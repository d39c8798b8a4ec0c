"""The API that BentoML's own clients find in /schema.json: POST /predict.

`bentoml.SyncHTTPClient(url).predict(image=Path("a.png"), top_k=3)` sends a form whose parts are the arguments: files as
they are, everything else in JSON. BentoML's own reading of such a request would fetch addresses that stand where a
file is expected and trust the declared type of each, so it is read here (see app.Front) as every other form is.
"""

from __future__ import annotations

import json
from typing import Any, Final

from contracts.errors import RequestError
from services.inference.bodies import Body
from services.inference.formats import Files, count_of
from services.inference.model import Model
from services.inference.models import Models
from services.inference.variants import Choice

FIELDS: Final = ("top_k", "model")


class Parts(Files):
    """As /v1/predict, but the options are parts beside the images."""

    def __init__(self, query: bytes = b"", arguments: tuple[list[bytes], str | None, int | None] | None = None) -> None:
        """`arguments` are the files, the model and top_k of a call inside Python, which has no body."""
        super().__init__(None, query)
        self._given = arguments is not None
        self._top_k: str | None = None
        if arguments is not None:
            self._files, self._name, top_k = arguments
            self._top_k = None if top_k is None else str(top_k)

    def early(self, models: Models, choice: Choice) -> None:
        """Nobody can be named before the form is there: the model's name stands in it."""

    async def read(self, body: Body) -> None:
        if self._given:
            return
        self._files = await body.images(FIELDS)
        self._name = _text(body, "model")
        self._top_k = _text(body, "top_k")

    def _count(self, model: Model) -> int:
        if self._query:
            raise RequestError("/predict takes no query parameter; send top_k and model as parts of the form.")
        return count_of(self._top_k, model)


def _text(body: Body, name: str) -> str | None:
    """A field as BentoML's client writes it, in JSON, or as it is; None where it is missing or null."""
    text = body.fields.get(name, bytearray()).decode("utf-8", "replace")[:200]
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        value = text or None
    if isinstance(value, bool | float | list | dict):
        raise RequestError(f"the part named '{name}' is {text[:60]!r}; give one text or number.")
    return None if value is None else str(value)
