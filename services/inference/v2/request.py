"""The JSON of a request to infer, read into values that have been checked; its tensors are looked at in tensors.py.

Its size is bounded before it is parsed: a megabyte of `[],[],` or of short texts becomes twenty of Python objects.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast

from contracts.errors import MalformedBody, TooLarge
from services.inference.errors import InvalidTensor

MAX_JSON_BYTES: Final = 4 * 1024 * 1024
"""Of the JSON alone. Five images of 224 x 224 x 3 fit; larger tensors belong into the binary form."""
_MAX_LISTS: Final = 500_000
_MAX_TEXTS: Final = 5_000
_MAX_RANK: Final = 8


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | None
    """As it stands in the JSON, flat or nested."""
    raw: memoryview | None
    """Its bytes behind the JSON; exactly one of the two is there."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output that is asked for."""

    name: str
    binary: bool | None
    """None: as the request has it for all."""
    classification: int | None


@dataclass(frozen=True, slots=True)
class Request:
    id: str | None
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    """Empty: the default ones."""
    binary: bool
    """Whether outputs are returned behind the JSON unless they say otherwise."""


def parse(body: bytes, header_length: int | None) -> Request:
    """Read a whole body.

    Args:
        header_length: of the JSON in it, from Inference-Header-Content-Length; None: all of it is JSON.

    Raises:
        TooLarge: the JSON is too large or too intricate.
        MalformedBody: it is no JSON, or the lengths do not add up.
        InvalidTensor: it is JSON, but no request of this protocol.
    """
    if header_length is not None and header_length > len(body):
        raise MalformedBody(
            f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes; count the JSON."
        )
    content = _json(body if header_length is None else body[:header_length])
    behind = memoryview(body)[len(body) if header_length is None else header_length :]
    parameters = _parameters(content, "the request")
    inputs = []
    for item in _list(content, "inputs", "the request"):
        given, size = _input(item, binary_allowed=header_length is not None)
        if size is not None:
            if size > len(behind):
                found = f"its binary_data_size is {size}, but {len(behind)} bytes are left"
                raise MalformedBody(f"input {given.name!r}: {found}; send all of it.")
            given = Input(given.name, given.datatype, given.shape, None, behind[:size])
            behind = behind[size:]
        inputs.append(given)
    if behind:
        raise MalformedBody(f"{len(behind)} bytes follow the last tensor; check each binary_data_size.")
    request_id = content.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InvalidTensor(f"the request's id is {_show(request_id)}; give a text.")
    outputs = tuple(_output(item) for item in _list(content, "outputs", "the request", optional=True))
    binary = _flag(parameters, "binary_data_output", "the request")
    return Request(request_id, tuple(inputs), outputs, bool(binary))


def _json(text: bytes) -> dict[str, Any]:
    if len(text) > MAX_JSON_BYTES:
        limit = f"{MAX_JSON_BYTES:,} are allowed; send tensors in binary, behind it"
        raise TooLarge(f"the JSON has {len(text):,} bytes where {limit}.")
    if text.count(b"[") + text.count(b"{") > _MAX_LISTS or text.count(b'"') > 2 * _MAX_TEXTS:
        limit = f"{_MAX_LISTS:,} lists or {_MAX_TEXTS:,} texts"
        raise TooLarge(f"the JSON holds more than {limit}; send flat lists of numbers, or binary tensors.")
    try:
        content = json.loads(text.decode("utf-8"), parse_constant=_no_constant)
    except RecursionError as error:
        raise MalformedBody("the JSON is nested too deeply; a tensor has as many levels as its shape.") from error
    except ValueError as error:
        reason = str(error).partition(": line")[0][:120]
        raise MalformedBody(f"the body is no JSON in UTF-8: {reason}; send a request of the protocol.") from error
    if not isinstance(content, dict):
        raise InvalidTensor(f"the JSON is {_show(content)}; send an object with 'inputs'.")
    return cast("dict[str, Any]", content)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _input(item: Any, *, binary_allowed: bool) -> tuple[Input, int | None]:
    """The input, and how many bytes behind the JSON are its."""
    name = _name(item, "inputs")
    who = f"input {name!r}"
    shape = item.get("shape")
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_RANK
        or not all(type(side) is int and 0 <= side < 2**31 for side in shape)
    ):
        raise InvalidTensor(f"{who}: its shape is {_show(shape)}; give a list of whole numbers.")
    datatype = item.get("datatype")
    if not isinstance(datatype, str):
        raise InvalidTensor(f"{who}: its datatype is {_show(datatype)}; give a text, such as UINT8.")
    parameters = _parameters(item, who)
    _no_shared_memory(parameters, who)
    size = _count(parameters, "binary_data_size", who, least=0)
    data = item.get("data")
    if size is not None:
        if not binary_allowed:
            raise MalformedBody(f"{who} has a binary_data_size; also send the header Inference-Header-Content-Length.")
        if data is not None:
            raise InvalidTensor(f"{who} has both data and a binary_data_size; send one of them.")
    elif not isinstance(data, list):
        raise InvalidTensor(f"{who}: its data is {_show(data)}; give a list, or a binary_data_size.")
    return Input(name, datatype, tuple(shape), data, None), size


def _output(item: Any) -> Output:
    name = _name(item, "outputs")
    who = f"output {name!r}"
    parameters = _parameters(item, who)
    _no_shared_memory(parameters, who)
    classification = _count(parameters, "classification", who, least=0)
    return Output(name, _flag(parameters, "binary_data", who), classification or None)  # 0 asks for none


def _name(item: Any, where: str) -> str:
    if not isinstance(item, dict):
        raise InvalidTensor(f"'{where}' holds {_show(item)}; give objects with a name.")
    name = item.get("name")
    if not isinstance(name, str):
        raise InvalidTensor(f"'{where}' holds an object whose name is {_show(name)}; give a text.")
    return name[:200]


def _list(content: dict[str, Any], key: str, who: str, *, optional: bool = False) -> list[Any]:
    value = content.get(key)
    if value is None and optional:
        return []
    if not isinstance(value, list):
        raise InvalidTensor(f"{who}: its {key} are {_show(value)}; give a list of objects.")
    return value


def _parameters(content: dict[str, Any], who: str) -> dict[str, Any]:
    value = content.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidTensor(f"{who}: its parameters are {_show(value)}; give an object.")
    return value


def _flag(parameters: dict[str, Any], key: str, who: str) -> bool | None:
    value = parameters.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidTensor(f"{who}: its parameter {key} is {_show(value)}; give true or false.")
    return value


def _count(parameters: dict[str, Any], key: str, who: str, *, least: int) -> int | None:
    value = parameters.get(key)
    if value is not None and (type(value) is not int or value < least):
        raise InvalidTensor(f"{who}: its parameter {key} is {_show(value)}; give a whole number from {least}.")
    return value


def _no_shared_memory(parameters: dict[str, Any], who: str) -> None:
    if "shared_memory_region" in parameters:
        raise InvalidTensor(f"{who} names a region of shared memory, which is not served; send tensors in the body.")


def _show(value: Any) -> str:
    """A short text for any value of a client's: large ones are named by their type alone."""
    if value is None:
        return "missing"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return repr(value)[:60]
