"""services.inference.piece: heads are read once and looked up from then on, whatever stands behind them."""

from __future__ import annotations

import pytest

from services.inference import piece
from services.inference.piece import read


def request(body: bytes, *fields: bytes, length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    head = b"".join(field + b"\r\n" for field in (b"Host: x", *fields, b"Content-Length: %d" % length))
    return b"POST /v1/predict HTTP/1.1\r\n%b\r\n%b" % (head, body)


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(piece, "_heads", {})


def test_a_head_that_is_known_says_nothing_of_the_body() -> None:
    first, second = read(request(b"first")), read(request(b"other"))
    assert first is not None
    assert second is not None
    assert first.head is second.head
    assert [one.one_image() for one in (first, second)] == [(None, b"first"), (None, b"other")]
    for body in (b"", b"shor", b"longer", b"first\r\n\r\n", b"\r\n\r\nfirst"):
        assert read(request(body, length=5)) is None


def test_a_head_that_leaves_a_doubt_does_so_every_time() -> None:
    for _ in range(2):
        assert read(request(b"x", b"Transfer-Encoding: chunked")) is None
        assert read(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") is None
        assert read(b"\x16\x03\x01 no head at all") is None
    assert read(request(b"x")) is not None


def test_requests_that_differ_are_told_apart_by_what_their_heads_say() -> None:
    ids = [read(request(b"x", b"X-Request-ID: %d" % number)) for number in (1, 2, 1)]
    assert [one.request_id for one in ids if one is not None] == [b"1", b"2", b"1"]
    nameless = [read(request(b"x")) for _ in range(2)]
    assert len({one.request_id for one in nameless if one is not None}) == 2


def test_heads_that_never_come_again_fill_no_memory() -> None:
    for number in range(3 * piece._KEPT):
        assert read(request(b"x", b"X-Request-ID: %d" % number)) is not None
        assert len(piece._heads) <= piece._KEPT
    long = request(b"x", b"X-Note: " + b"a" * piece._KEPT_BYTES)
    assert read(long) is not None
    assert not any(len(head) > piece._KEPT_BYTES for head in piece._heads)
