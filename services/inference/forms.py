"""The images of a multipart/form-data body, read as it arrives; every limit is enforced on the way."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from contracts.errors import MalformedBody, RequestError, TooLarge

FIELD: Final = "image"


def is_form(content_type: bytes) -> bool:
    return content_type[:10].lower() == b"multipart/"


class Form:
    """Collects the parts named `image` of one body, and the values of those `fields` that may stand beside them.

    Feed it the body piece by piece, then `finish`.

    Raises (from every method):
        MalformedBody: what is sent does not follow multipart/form-data.
        TooLarge: more parts than `max_parts`.
        RequestError: a part of another name, a field given twice, or no image at all.
    """

    def __init__(self, content_type: bytes, *, max_parts: int, fields: Collection[str] = ()) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data":
            raise MalformedBody(
                f"the body's type is {_text(kind)}; send multipart/form-data or the bytes of one image."
            )
        if not boundary:
            raise MalformedBody(
                "the Content-Type multipart/form-data names no boundary; let the client library set it."
            )
        self._max_parts = max_parts
        self._images: list[bytearray] = []
        self._known = fields
        self.fields: dict[str, bytearray] = {}
        self._part = bytearray()
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._ended = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part_begin,
                    "on_header_field": self._on_header_field,
                    "on_header_value": self._on_header_value,
                    "on_header_end": self._on_header_end,
                    "on_headers_finished": self._on_headers_finished,
                    "on_part_data": self._on_part_data,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from error

    def finish(self) -> list[bytes]:
        """The images' bytes, in the order in which they were sent; at least one."""
        if not self._ended:
            raise MalformedBody("the multipart body ends before its closing boundary; send all of it.")
        if not self._images:
            raise RequestError(f"the form has no image; send one or more parts named '{FIELD}'.")
        return [bytes(image) for image in self._images]

    def _on_part_begin(self) -> None:
        if len(self._images) + len(self.fields) >= self._max_parts + len(self._known):
            raise self._too_many()
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if name is None:
            raise MalformedBody('a part of the form has no name; give it Content-Disposition: form-data; name="image".')
        self._part = bytearray()
        if name == FIELD.encode():
            if len(self._images) >= self._max_parts:
                raise self._too_many()
            self._images.append(self._part)
        elif (field := name.decode("latin-1")) not in self._known:
            # Refused, not ignored: a forgotten part would look like a missing answer.
            names = " or ".join(f"'{known}'" for known in (FIELD, *self._known))
            raise RequestError(f"the form has a part named {_text(name)}; parts must be named {names}.")
        elif field in self.fields:
            raise RequestError(f"the form has more than one part named '{field}'; send it once.")
        else:
            self.fields[field] = self._part

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part += data[start:end]

    def _on_end(self) -> None:
        self._ended = True

    def _too_many(self) -> TooLarge:
        return TooLarge(f"the form has more than {self._max_parts} parts, the limit; send the rest in other requests.")


def _malformed(error: FormParserError) -> MalformedBody:
    reason = str(error).strip().rstrip(".").splitlines()[0][:200]
    return MalformedBody(f"the multipart body cannot be read: {reason}; let the client library build it.")


def _text(value: bytes) -> str:
    return repr(value[:60].decode("latin-1"))
