"""One whole prediction as it came off a connection: read by two regular expressions, where nothing is unusual.

For a tiny network's prediction, the parser's callbacks, the scope and the task cost more than the network. What leaves
a doubt is no `Piece`, and goes to the parser.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from services.inference import ids

Fields = Iterable[tuple[bytes, bytes]]

PREDICTION: Final = rb"(?:/v1/predict|/predict|/v1/models/[^/?\s]+/predict|(/v2/models/[^?\s]+/infer))"
"""The paths that are asked for predictions; its group is what stands below /v2."""
MAX_FIELDS: Final = 100
_HEAD: Final = re.compile(
    rb"POST (%b(?:\?[!-~]*)?) HTTP/1\.1\r\n"
    rb"(?:[!#$%%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)+\r\n" % PREDICTION
)
_TELLING: Final = re.compile(
    rb"\r\n(content-length|x-request-id|connection|content-type|authorization|x-api-key|x-stride-variant|"
    rb"transfer-encoding|expect|upgrade|traceparent):[ \t]*([^\r\n]*)",
    re.IGNORECASE,
)
_OPTIONS: Final = frozenset({b"content-type", b"x-stride-variant"})
_KEYS: Final = frozenset({b"authorization", b"x-api-key"})
_ONE: Final = re.compile(rb"/v1/(?:models/([\w.:@-]+)/)?predict")


_KEPT: Final = 512
_KEPT_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Head:
    """What was read of a head: the line and the fields of a POST to where predictions are made."""

    target: bytes
    v2: bool
    given_id: bytes
    """As the client sent it; empty where it sent none."""
    keys: tuple[tuple[bytes, bytes], ...]
    """The fields that an API key may stand in."""
    options: tuple[tuple[bytes, bytes], ...]
    """Those that choose how it is read or who answers it."""
    length: int
    """Bytes of the body."""


class Piece(NamedTuple):
    """A head, its body behind it, and nothing behind that."""

    data: bytes
    body_at: int
    head: Head

    @property
    def request_id(self) -> bytes:
        given = self.head.given_id
        return ids.of(((ids.HEADER, given),)) if given else ids.made_up()

    def one_image(self) -> tuple[str | None, bytes] | None:
        """The model's name (None: the default one) and the image, where one image and no option is all there is."""
        if (found := _ONE.fullmatch(self.head.target)) is None:
            return None
        for name, value in self.head.options:
            if name != b"content-type" or value[:10].lower() == b"multipart/":
                return None
        model: bytes | None = found[1]
        return model.decode() if model is not None else None, self.data[self.body_at :]


_heads: dict[bytes, Head | None] = {}
"""Of late: a client that asks again mostly sends the same head, and to look it up is cheaper than to read it."""


def read(data: bytes) -> Piece | None:
    """What came on a connection that was at rest; None where it has to be looked at more closely."""
    body_at = data.find(b"\r\n\r\n") + 4
    written = data[:body_at]
    try:
        head = _heads[written]
    except KeyError:
        head = _head(written)
        if len(written) <= _KEPT_BYTES:
            if len(_heads) >= _KEPT:
                _heads.clear()
            _heads[written] = head
    return None if head is None or body_at + head.length != len(data) else Piece(data, body_at, head)


def _head(written: bytes) -> Head | None:
    """Read a head, with the line of nothing at its end; None where it is another request's, or leaves a doubt."""
    if (found := _HEAD.fullmatch(written)) is None:
        return None
    if written.count(b"\r\n") > MAX_FIELDS + 2:  # beside them, the lines of the request and of nothing
        return None
    length: bytes | None = None
    given_id = b""
    keys, options = [], []
    for field, value in _TELLING.findall(written):
        name = field.lower()
        if name == b"content-length" and length is None:
            length = value.rstrip()
        elif name == ids.HEADER and not given_id:
            given_id = value.rstrip()
        elif name in _OPTIONS:
            options.append((name, value.rstrip()))
        elif name in _KEYS:
            keys.append((name, value.rstrip()))
        elif name != b"connection" or value.rstrip().lower() != b"keep-alive":
            return None
    if length is None or not length.isdigit() or len(length) > 9:
        return None
    return Head(found[1], found[2] is not None, given_id, tuple(keys), tuple(options), int(length))


def lines_of(fields: Fields) -> bytes:
    """Header fields as they are sent."""
    return b"".join(b"%b: %b\r\n" % field for field in fields)


class ServerLines:
    """The fields that the server adds to every answer, as they are sent; made anew when the date in them changes."""

    def __init__(self) -> None:
        self._of: Fields | None = None
        self._lines = b""

    def __call__(self, fields: Fields) -> bytes:
        if self._of is not fields:  # the server makes a new list then
            self._of, self._lines = fields, lines_of(fields)
        return self._lines
