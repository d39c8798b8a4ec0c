"""services.training.jobs.request: what a body may hold, and the sentence for what it may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contracts.errors import MalformedBody, RequestError
from services.training.jobs.request import parse


def body(**content: Any) -> bytes:
    return json.dumps({"kind": "train", "recipe": "digits", **content}).encode()


def test_a_request_is_read_with_its_defaults() -> None:
    request = parse(body(set={"fit.epochs": 3}))
    assert (request.kind, request.recipe, request.set, request.force, request.gpus) == (
        "train", "digits", {"fit.epochs": 3}, False, None,
    )  # fmt: skip


def test_two_bodies_that_mean_the_same_have_one_digest() -> None:
    one, same = (
        parse(b'{"kind":"train","recipe":"digits"}'),
        parse(b' {"recipe": "digits", "kind": "train", "set": {}}'),
    )
    assert one.digest() == same.digest() != parse(body(force=True)).digest()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"kind": "trane"}, "job: kind is 'trane'; input should be 'train', 'ship' or 'sweep'."),
        ({"recipi": "digits"}, "job: key 'recipi' is not known; did you mean 'recipe'?"),
        ({"recipe": 5}, "job: recipe is 5; give a recipe's name, or a whole recipe as an object."),
        ({"set": ["fit.epochs=3"]}, "job: set is ['fit.epochs=3']; input should be a valid dictionary."),
        ({"gpus": -1}, "job: gpus is -1; input should be greater than or equal to 0."),
        ({"gpus": 1.5}, "job: gpus is 1.5; above 1 give a whole number."),
        ({"gpus": 0.0001}, "job: gpus is 0.0001; give 0 for none, or at least 0.05, a twentieth of one."),
        (
            {"kind": "sweep", "trials": 2},
            "job: a sweep needs trials and space; add how many settings are tried, and of which keys.",
        ),
        (
            {"trials": 3},
            "job: trials and space are for a sweep; leave them out, or set kind 'train' to 'sweep'.",
        ),
        (
            {"kind": "sweep", "trials": 2, "space": {"optimizer.lr": "uniform(0, 1)"}, "force": True},
            "job: force and gpus are not for a sweep; leave them out.",
        ),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse(body(**content))
    assert refused.value.message == sentence


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"kind": NaN}', b'{"kind": "train", "kind": "ship"}'])
def test_what_is_no_json_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedBody, match="the body is not valid JSON"):
        parse(text)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"set": ' + b"[" * 40 + b"]" * 40 + b"}"])
def test_what_is_nested_too_deep_is_malformed(text: bytes) -> None:
    with pytest.raises(MalformedBody):
        parse(text)


@pytest.mark.parametrize("text", [b"[]", b'"train"', b"null"])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(RequestError, match="expected an object with the keys 'kind' and 'recipe'"):
        parse(text)
