"""The input tensors of a request: what a model is asked.

A binary tensor is looked at where it lies, in the body; nothing of it is copied on its way to the batcher.
"""

from __future__ import annotations

import base64
import math
from itertools import chain
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from services.inference.errors import InvalidTensor
from services.inference.formats import Sent, check_images
from services.inference.model import Model
from services.inference.v2.metadata import IMAGE, IMAGES
from services.inference.v2.request import Input

_LENGTH_BYTES: Final = 4


def sent(inputs: tuple[Input, ...], model: Model, *, most: float = math.inf) -> Sent:
    """The images that a request holds, as files or as the model takes them.

    Args:
        most: files that are taken apart; images as the model takes them are not looked at one by one.

    Raises:
        InvalidTensor: a name, a datatype, a shape or a value that is not the model's.
        TooLarge: more files than `most`.
    """
    if len(inputs) != 1:
        raise InvalidTensor(f"the request has {len(inputs)} inputs; give one, '{IMAGES}' or '{IMAGE}'.")
    given = inputs[0]
    if given.name == IMAGES:
        return _tensor(given, model)
    if given.name == IMAGE:
        return _files(given, most)
    raise InvalidTensor(f"model {model.name!r} has no input {given.name!r}; give '{IMAGES}' or '{IMAGE}'.")


def bare(body: bytes, model: Model) -> NDArray[np.uint8]:
    """A body that is the tensor `images` and nothing else: its size tells how many they are.

    Raises:
        InvalidTensor: it holds no whole number of images.
    """
    rows, rest = divmod(len(body), math.prod(model.spec.shape))
    if rest or not rows:
        wanted = f"{math.prod(model.spec.shape)} bytes an image"
        raise InvalidTensor(f"the body has {len(body)} bytes; model {model.name!r} takes {wanted}, at least one image.")
    return np.frombuffer(body, np.uint8).reshape(rows, *model.spec.shape)


def _tensor(given: Input, model: Model) -> NDArray[np.uint8]:
    wanted = model.spec.shape
    if given.datatype != "UINT8":
        raise InvalidTensor(f"input '{IMAGES}' has datatype {given.datatype[:40]!r}; give UINT8, from 0 to 255.")
    if len(given.shape) != 1 + len(wanted) or given.shape[1:] != wanted or given.shape[0] < 1:
        shape = ", ".join(str(side) for side in wanted)
        raise InvalidTensor(
            f"input '{IMAGES}' has shape {list(given.shape)}; model {model.name!r} takes [n, {shape}], n at least 1."
        )
    if given.raw is not None:
        if len(given.raw) != math.prod(given.shape):
            found = f"{len(given.raw)} bytes for shape {list(given.shape)}"
            raise InvalidTensor(f"input '{IMAGES}' has {found}; give {math.prod(given.shape)}.")
        return np.frombuffer(given.raw, np.uint8).reshape(given.shape)
    values = _flat(given)
    if set(map(type, values)) != {int}:  # True is no number here, and neither is 1.5
        raise InvalidTensor(f"input '{IMAGES}' holds something else than whole numbers; give numbers from 0 to 255.")
    try:
        return np.frombuffer(bytes(values), np.uint8).reshape(given.shape)
    except ValueError as error:
        raise InvalidTensor(f"input '{IMAGES}' holds a number outside 0 to 255; it is UINT8.") from error


def _files(given: Input, most: float) -> list[bytes]:
    if given.datatype != "BYTES":
        raise InvalidTensor(f"input '{IMAGE}' has datatype {given.datatype[:40]!r}; give BYTES, an image file each.")
    if not (len(given.shape) == 1 or (len(given.shape) == 2 and given.shape[1] == 1)) or given.shape[0] < 1:
        raise InvalidTensor(f"input '{IMAGE}' has shape {list(given.shape)}; give [n] or [n, 1], n at least 1.")
    # Eight million empty files fit into a body, and this may be on the event loop.
    check_images(given.shape[0], most)
    if given.raw is not None:
        return _elements(given.raw, given.shape[0])
    return [_from_base64(text) for text in _flat(given)]


def _flat(given: Input) -> list[Any]:
    """The values of a tensor in JSON, which may be flat or nested as its shape says."""
    who = f"input {given.name!r}"
    level = given.data or []
    if level and isinstance(level[0], list):
        level = [level]
        for side in given.shape:
            if not all(type(part) is list and len(part) == side for part in level):
                raise InvalidTensor(f"{who} is ragged, or not nested as its shape {list(given.shape)} says.")
            level = list(chain.from_iterable(level))
    if len(level) != (wanted := math.prod(given.shape)):
        raise InvalidTensor(f"{who} has {len(level)} values; its shape {list(given.shape)} needs {wanted}.")
    return level


def _elements(raw: memoryview, count: int) -> list[bytes]:
    """BYTES: each element behind its length, 4 bytes of it, the least first."""
    elements: list[bytes] = []
    at = 0
    while at < len(raw) and len(elements) < count:
        start = at + _LENGTH_BYTES
        end = start + int.from_bytes(raw[at:start], "little")
        if start > len(raw) or end > len(raw):
            raise InvalidTensor(f"input '{IMAGE}': element {len(elements)} is longer than what is left of the tensor.")
        elements.append(bytes(raw[start:end]))
        at = end
    if at != len(raw) or len(elements) != count:
        raise InvalidTensor(f"input '{IMAGE}' does not hold the {count} elements of its shape, and nothing else.")
    return elements


def _from_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise InvalidTensor(f"input '{IMAGE}' holds what is no base64; in JSON each file is base64.") from error
