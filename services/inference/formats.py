"""What the ways in have of their own: how a request names its images, and how its answer is written.

`Predictor.predict` does all that lies between, for each of them: limits, admission, decoding, deadline, inference,
metrics. A `Format` belongs to one request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from contracts.errors import RequestError, TooLarge
from services.inference import answers
from services.inference.bodies import Body
from services.inference.model import Model
from services.inference.models import Models
from services.inference.problems import Headers
from services.inference.variants import Choice

DEFAULT_TOP_K: Final = 5
Sent = list[bytes] | NDArray[np.uint8]
"""Image files, at least one; or images as a model takes them, uint8 (n, height, width, channels)."""
Aside = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs work that would hold up the event loop beside it, within the request's deadline."""


class Format(ABC):
    """The methods are called in this order. Each raises a StrideError for what the client did wrong."""

    headers: Headers
    """Of the answer; complete once it is written."""
    version: str | None = None
    """The only one that may answer, where the client names it."""

    def early(self, models: Models, choice: Choice) -> Model | None:
        """Refuse what can be refused before the body is read; who would answer, where that is known by then."""
        return self.find(models, choice)

    @abstractmethod
    async def read(self, body: Body) -> None:
        """Take in the body."""

    @abstractmethod
    def find(self, models: Models, choice: Choice) -> Model:
        """Who is to answer."""

    @abstractmethod
    async def images(self, model: Model, aside: Aside) -> Sent:
        """What `model` is asked."""

    @abstractmethod
    def write(self, model: Model, probabilities: NDArray[np.float32]) -> bytes:
        """The body of the answer: float32 (n, classes) in words."""


class Files(Format):
    """Image files in, labelled predictions out: /v1/."""

    def __init__(self, name: str | None, query: bytes) -> None:
        self._name = name
        self._query = query
        self._files: list[bytes] = []
        self.headers = [(b"content-type", b"application/json")]

    async def read(self, body: Body) -> None:
        self._files = await body.images()

    def find(self, models: Models, choice: Choice) -> Model:
        model = models.get(self._name, choice)
        self._count(model)
        return model

    async def images(self, model: Model, aside: Aside) -> list[bytes]:  # noqa: ARG002 - the predictor decodes files
        return self._files

    def write(self, model: Model, probabilities: NDArray[np.float32]) -> bytes:
        return answers.predictions(model, probabilities, self._count(model))

    def _count(self, model: Model) -> int:
        return count_of(_top_k(self._query) if self._query else None, model)


def check_images(count: int, most: float) -> None:
    """Refuse a request of more images than one may have.

    Raises:
        TooLarge: it has.
    """
    if count > most:
        raise TooLarge(f"the request has {count} images where {most} are allowed; send the rest in other requests.")


def count_of(text: str | None, model: Model) -> int:
    """How many classes to name: `top_k` as it was given, from 1 to the number of classes.

    Raises:
        RequestError: out of range, or not a number.
    """
    classes = len(model.labels)
    if text is None:
        return min(DEFAULT_TOP_K, classes)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= classes):
        raise RequestError(f"top_k is {text[:60]!r}; give a whole number from 1 to {classes}.")
    return int(text)


def _top_k(query: bytes) -> str | None:
    """`top_k` as it stands in the query string.

    Raises:
        RequestError: given twice, or beside an unknown parameter.
    """
    try:
        given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=16)
    except ValueError as error:
        raise RequestError("the query string has too many parameters; only top_k is known.") from error
    unknown = next((key for key, _ in given if key != "top_k"), None)
    if unknown is not None:
        raise RequestError(f"the query parameter {unknown[:60]!r} is not known; only top_k is.")
    if len(given) > 1:
        raise RequestError(f"top_k is given {len(given)} times; give it once.")
    return given[0][1] if given else None
