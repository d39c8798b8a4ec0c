"""Requests as bytes, and where an answer ends."""

from __future__ import annotations

import pytest

from benchmarks.serving import wire

PLAIN = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{"a":1}'
CHUNKED = b"HTTP/1.1 429 Too Many\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\na;x=y\r\n0123456789\r\n0\r\n\r\n"


@pytest.mark.parametrize(("answer", "status"), [(PLAIN, 200), (CHUNKED, 429)])
def test_an_answer_ends_where_it_ends_and_not_before(answer: bytes, status: int) -> None:
    for length in range(len(answer)):
        assert wire.frame(answer[:length]) is None
    for behind in (b"", b"HTTP/1.1 200 OK\r\n"):
        found = wire.frame(answer + behind)
        assert found is not None
        assert (found.status, found.end, found.close) == (status, len(answer), False)


def test_the_content_is_without_the_head_and_without_the_chunks() -> None:
    assert wire.content(PLAIN) == b'{"a":1}'
    assert wire.content(CHUNKED) == b"abc0123456789"


def test_an_answer_that_closes_says_so() -> None:
    found = wire.frame(PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert found is not None
    assert found.close


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Content-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_says_no_length_is_refused_and_not_waited_for(answer: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.frame(answer)


def test_a_request_is_whole() -> None:
    body, kind = wire.form("image", b"\x89PNG")
    request = wire.post("/v1/predict", body, kind, {"X-Request-ID": "1"})
    head, _, sent = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/predict HTTP/1.1\r\nHost: ")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"X-Request-ID: 1" in head
    assert sent == body
    boundary = kind.partition("boundary=")[2].encode()
    assert body.startswith(b"--" + boundary + b'\r\nContent-Disposition: form-data; name="image"')
    assert body.endswith(b"\x89PNG\r\n--" + boundary + b"--\r\n")
