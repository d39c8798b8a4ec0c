"""Requests that bend HTTP itself: methods, addresses, heads, lengths, chunks, connections."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest

from contracts.images import encode_png

PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
CLOSE = b"Connection: close\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(PNG)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
FORM = b"Content-Type: multipart/form-data"
ONE_CHUNK = b"%x\r\n%b\r\n0\r\n\r\n" % (len(PNG), PNG)


def request(
    target: bytes = b"/v1/predict",
    *headers: bytes,
    method: bytes = b"POST",
    version: bytes = b"HTTP/1.1",
    body: bytes = PNG,
    length: bytes = LENGTH,
) -> bytes:
    """A good prediction, but for what is given; every connection ends with it."""
    fields = b"Host: x\r\n" + CLOSE + length + b"".join(header + b"\r\n" for header in headers)
    return b"%b %b %b\r\n%b\r\n%b" % (method, target, version, fields, body)


def field(*headers: bytes, **options: bytes) -> bytes:
    return request(b"/v1/predict", *headers, **options)


Case = tuple[bytes, int | tuple[int, ...] | None, str]

METHODS: dict[str, Case] = {
    **{f"{method} of a prediction": (request(method=method.encode()), 405, "method_not_allowed")
       for method in ("GET", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "PROPFIND")},
    "HEAD of a prediction": (request(method=b"HEAD"), 405, ""),
    "HEAD of the page": (request(b"/", method=b"HEAD"), 200, ""),
    "POST of the page": (request(b"/"), 405, "method_not_allowed"),
    "OPTIONS of everything": (request(b"*", method=b"OPTIONS"), (400, 404), ""),
    "TRACE of BentoML's own route": (request(b"/livez", method=b"TRACE"), 405, ""),
    "POST of BentoML's own route": (request(b"/readyz"), 405, ""),
    "CONNECT": (request(b"127.0.0.1:22", method=b"CONNECT"), 400, "malformed_request"),
    "a method that does not exist": (request(method=b"BREW"), 400, "malformed_request"),
    "a method in lower case": (request(method=b"post"), 400, "malformed_request"),
    "no method": (request(method=b""), 400, "malformed_request"),
}  # fmt: skip

ADDRESSES: dict[str, Case] = {
    "up and down again": (request(b"/v1/../v1/predict"), 404, "not_found"),
    "two slashes": (request(b"//v1/predict"), (400, 404), ""),
    "a slash too many": (request(b"/v1/predict/"), 404, "not_found"),
    "upper case": (request(b"/V1/PREDICT"), 404, "not_found"),
    "a parameter of the path": (request(b"/v1/predict;a=b"), 404, "not_found"),
    "a backslash": (request(b"\\v1\\predict"), 400, ""),
    "a file of the system": (request(b"/../../../../etc/passwd", method=b"GET"), 404, ""),
    "a file of the system, below the page's": (
        request(b"/static_content/../../../../../../etc/passwd", method=b"GET"), 404, ""),
    "a file of the system, in percents": (
        request(b"/static_content/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd", method=b"GET"), 404, ""),
    "our own source": (request(b"/static_content/../app.py", method=b"GET"), 404, ""),
    "a null byte in percents": (request(b"/v1/predict%00"), 404, "not_found"),
    "a null byte below the page's files": (request(b"/static_content/a%00b", method=b"GET"), 404, ""),
    "a name with a null byte": (request(b"/v1/models/%00/predict"), 404, "not_found"),
    "a name that leads out": (request(b"/v1/models/..%2f..%2f/predict"), 404, "not_found"),
    "a name that is not UTF-8": (request(b"/v1/models/%ff%fe/predict"), 404, "not_found"),
    "a name with a line end": (request(b"/v1/models/a%0d%0aX-Injected:%20yes/predict"), 404, "not_found"),
    "a name of 8,000 bytes": (request(b"/v1/models/%b/predict" % (b"a" * 8_000)), 404, "not_found"),
    "half a percent": (request(b"/v1/%"), 404, "not_found"),
    "raw bytes above 127": (request(b"/v1/\xff\xfe"), 400, ""),
    "a space": (request(b"/v1/pre dict"), 400, ""),
    "with the host before it": (request(b"http://elsewhere.example/v1/predict"), 200, ""),
    "with user and password": (request(b"http://a:b@x/v1/predict"), 200, ""),
    "of another scheme": (request(b"file:///etc/passwd"), (400, 404), ""),
    "no slash": (request(b"v1/predict"), 400, ""),
    "an anchor": (request(b"/v1/predict#part"), (200, 404), ""),
    "percents in a letter": (request(b"/v1/%70redict"), 200, ""),
    "60,000 bytes": (request(b"/" + b"a" * 60_000), 404, "not_found"),
    "BentoML's own endpoint for tasks": (request(b"/predict/submit"), (404, 405), ""),
}  # fmt: skip

QUERIES: dict[str, Case] = {
    **{f"top_k={text}": (request(b"/v1/predict?top_k=" + text.encode()), 422, "invalid_request")
       for text in ("0", "-1", "4", "1.0", "1e0", "+1", "%201", "0x1", "nan", "inf", "true", "1%00", "%D9%A1",
                    "9" * 5_000, "%22%3E%3Cscript%3E", "")},
    "top_k twice": (request(b"/v1/predict?top_k=1&top_k=2"), 422, "invalid_request"),
    "top_k as a list": (request(b"/v1/predict?top_k[]=1"), 422, "invalid_request"),
    "top_k after a semicolon": (request(b"/v1/predict?a=1;top_k=1"), 422, "invalid_request"),
    "an unknown parameter": (request(b"/v1/predict?model=shapes"), 422, "invalid_request"),
    "10,000 parameters": (request(b"/v1/predict?" + b"a&" * 10_000), 422, "invalid_request"),
    "60,000 bytes of one parameter": (request(b"/v1/predict?top_k=" + b"1" * 60_000), 422, "invalid_request"),
    "broken percents": (request(b"/v1/predict?top_k=%zz%"), 422, "invalid_request"),
    "bytes that are not ASCII": (request(b"/v1/predict?top_k=\xff"), (400, 422), ""),
    "nothing but a question mark": (request(b"/v1/predict?"), 200, ""),
    "a query behind a page": (request(b"/openapi.json?" + b"a" * 60_000, method=b"GET"), 200, ""),
}  # fmt: skip

HEADS: dict[str, Case] = {
    "upper case": (field(b"CONTENT-TYPE: IMAGE/PNG"), 200, ""),
    "no host": (b"POST /v1/predict HTTP/1.1\r\n" + CLOSE + LENGTH + b"\r\n" + PNG, (200, 400), ""),
    "two hosts": (field(b"Host: y"), (200, 400), ""),
    "101 fields": (field(*(b"X-%d: a" % number for number in range(101))), 431, "head_too_large"),
    "20,000 fields": (field(*(b"X-%d: a" % number for number in range(20_000))), 431, ""),
    "a field of 1 MB": (field(b"X: " + b"a" * 1_000_000), 431, ""),
    "a content type of 30,000 bytes": (field(b"Content-Type: image/" + b"p" * 30_000), 200, ""),
    "a form's type without end": (field(FORM + b'; boundary="' + b'\\"' * 9_999), 400, ""),
    "a form's type of many parameters": (field(FORM + b";a=b" * 9_999), 400, ""),
    "a content type that is not ASCII": (field(b"Content-Type: \xff\xfe"), 200, ""),
    "a field without a colon": (field(b"nonsense"), 400, "malformed_request"),
    "a field without a name": (field(b": nonsense"), 400, "malformed_request"),
    "a name with a space": (field(b"X Y: nonsense"), 400, "malformed_request"),
    "a space before the colon": (field(b"Content-Length : 5"), 400, "malformed_request"),
    "a null byte in a field": (field(b"X: a\0b"), 400, "malformed_request"),
    "a null byte in a name": (field(b"X\0: a"), 400, "malformed_request"),
    "a folded field": (field(b"X: a\r\n b"), (200, 400), ""),
    "a request id with a line end in percents": (field(b"X-Request-ID: a%0d%0ab"), 200, ""),
    "a request id of 10,000 bytes": (field(b"X-Request-ID: " + b"a" * 10_000), 200, ""),
    "a trace of rubbish": (field(b"Traceparent: 00-zz--\xff"), 200, ""),
    "a trace of 10,000 bytes": (field(b"Traceparent: 00-" + b"0" * 10_000), 200, ""),
    "a variant that does not exist": (field(b"X-Stride-Variant: \xff"), 422, "invalid_request"),
    "an authorization of rubbish": (field(b"Authorization: Bearer " + b"\xff" * 5_000), 200, ""),
    "lines that end with LF alone": (request(length=LENGTH).replace(b"\r\n", b"\n", 4), (200, 400), ""),
    "lines that end with CR alone": (b"GET / HTTP/1.1\rHost: x\r\r", 400, "malformed_request"),
    "HTTP/1.0": (request(version=b"HTTP/1.0"), 200, ""),
    "HTTP/0.9": (b"GET /\r\n\r\n", (200, 400), ""),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""),
    "HTTP/9.9": (request(version=b"HTTP/9.9"), 400, "malformed_request"),
    "HTTPS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500, 400, "malformed_request"),
    "a mail": (b"EHLO x\r\nMAIL FROM:<a@b>\r\n", 400, "malformed_request"),
    "only null bytes": (b"\0" * 5_000, 400, "malformed_request"),
    "an upgrade to HTTP/2": (
        request(b"/v1/models", b"Upgrade: h2c", b"Connection: Upgrade", method=b"GET", body=b"", length=b""), 200, ""),
    "an upgrade to HTTP/2 before a body": (field(b"Upgrade: h2c", b"Connection: Upgrade"), 400, "malformed_request"),
    "an upgrade before chunks": (
        field(b"Upgrade: h2c", b"Connection: Upgrade", length=CHUNKED, body=ONE_CHUNK), 400, "malformed_request"),
    "an upgrade to a websocket": (
        field(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", method=b"GET", body=b"", length=b""), (400, 403), ""),
    "an upgrade to a websocket without a key": (
        field(b"Connection: Upgrade", b"Upgrade: websocket", method=b"GET", body=b"", length=b""),
        (400, 403, 426), ""),
}  # fmt: skip

LENGTHS: dict[str, Case] = {
    "5 GB declared": (request(length=b"Content-Length: 5000000000\r\n"), 413, "too_large"),
    "20 digits": (request(length=b"Content-Length: 99999999999999999999\r\n"), 400, "malformed_request"),
    "negative": (request(length=b"Content-Length: -1\r\n"), 400, "malformed_request"),
    "with a plus": (request(length=b"Content-Length: +%d\r\n" % len(PNG)), 400, "malformed_request"),
    "hexadecimal": (request(length=b"Content-Length: 0x10\r\n"), 400, "malformed_request"),
    "no number": (request(length=b"Content-Length: many\r\n"), 400, "malformed_request"),
    "empty": (request(length=b"Content-Length: \r\n"), 400, "malformed_request"),
    "a list": (request(length=b"Content-Length: 70, 70\r\n"), 400, "malformed_request"),
    "twice the same": (request(length=LENGTH * 2), 400, "malformed_request"),
    "twice, not the same": (request(length=LENGTH + b"Content-Length: 0\r\n"), 400, "malformed_request"),
    "none": (request(length=b""), 400, ""),
    "too short, the rest taken for a request": (request(length=b"Content-Length: 10\r\n"), (400, 415), ""),
    "length and chunks": (request(length=LENGTH + CHUNKED, body=ONE_CHUNK), 400, "malformed_request"),
    "HTTP/1.0 without a length": (request(length=b"", version=b"HTTP/1.0"), 400, ""),
    "chunks": (request(length=CHUNKED, body=ONE_CHUNK), 200, ""),
    "chunks of one byte": (
        request(length=CHUNKED, body=b"".join(b"1\r\n%c\r\n" % byte for byte in PNG) + b"0\r\n\r\n"), 200, ""),
    "chunks in upper case": (request(length=b"TRANSFER-ENCODING: CHUNKED\r\n", body=ONE_CHUNK), 200, ""),
    "chunks with extensions": (
        request(length=CHUNKED, body=b'%x;a="b"\r\n%b\r\n0;c\r\n\r\n' % (len(PNG), PNG)), (200, 400), ""),
    "chunks with a trailer that says the length": (
        request(length=CHUNKED, body=ONE_CHUNK[:-2] + b"Content-Length: 5\r\n\r\n"), (200, 400), ""),
    "chunks without end": (
        request(length=CHUNKED, body=(b"100000\r\n" + b"\0" * 2**20 + b"\r\n") * 34), 413, "too_large"),
    "a chunk of a negative size": (request(length=CHUNKED, body=b"-5\r\nabcde\r\n0\r\n\r\n"), 400, ""),
    "a chunk of an endless size": (request(length=CHUNKED, body=b"f" * 40 + b"\r\n"), 400, ""),
    "a chunk whose size is no number": (request(length=CHUNKED, body=b"many\r\nabcde\r\n0\r\n\r\n"), 400, ""),
    "a chunk that is longer than it says": (request(length=CHUNKED, body=b"3\r\nabcdef\r\n0\r\n\r\n"), 400, ""),
    "a coding that is not known": (request(length=b"Transfer-Encoding: gzip\r\n"), 400, ""),
    "a coding after the chunks": (request(length=b"Transfer-Encoding: chunked, gzip\r\n", body=ONE_CHUNK), 400, ""),
    "a coding that only looks like chunks": (
        request(length=b"Transfer-Encoding: xchunked\r\n", body=ONE_CHUNK), 400, ""),
    "chunks, said with a tab": (request(length=b"Transfer-Encoding:\tchunked\r\n", body=ONE_CHUNK), 200, ""),
    "100-continue": (request(b"/v1/predict", b"Expect: 100-continue"), 200, ""),
    "100-continue in upper case": (request(b"/v1/predict", b"EXPECT: 100-CONTINUE"), 200, ""),
    "something else expected": (request(b"/v1/predict", b"Expect: the spanish inquisition"), (200, 417), ""),
    "a content range": (request(b"/v1/predict", b"Content-Range: bytes 0-9/5000000000"), 200, ""),
    "a body that is said to be packed": (request(b"/v1/predict", b"Content-Encoding: gzip"), (200, 415), ""),
    "a body behind GET": (request(b"/openapi.json", method=b"GET"), 200, ""),
}  # fmt: skip

CASES = {
    f"{kind}: {name}": case
    for kind, cases in {
        "method": METHODS, "address": ADDRESSES, "query": QUERIES, "head": HEADS, "length": LENGTHS
    }.items()
    for name, case in cases.items()
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bent_request_is_refused_or_rightly_answered(attack: Any, case: str) -> None:
    sent, status, code = CASES[case]
    attack(sent, status=status, code=code)


@pytest.mark.parametrize(
    "before", [b"", b"POST /v1/pre", request()[:60], request()[:-30], request(length=CHUNKED, body=b"5\r\nab")]
)
def test_who_leaves_in_the_middle_harms_nobody(attack: Any, before: bytes) -> None:
    for _ in range(20):
        with attack.connect() as client:
            client.sendall(before)
    attack.unharmed()


def test_who_leaves_while_waiting_for_the_answer_harms_nobody(attack: Any) -> None:
    for _ in range(50):
        with attack.connect() as client:
            client.sendall(request())
    attack.unharmed()


def test_a_request_in_pieces_of_one_byte_is_answered(attack: Any) -> None:
    with attack.connect() as client:
        for byte in request():
            client.sendall(bytes([byte]))
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
    attack.unharmed()


def test_good_and_bad_requests_in_one_piece_are_answered_in_their_order(attack: Any) -> None:
    kept = request().replace(CLOSE, b"")
    bad = request(b"/v1/predict?top_k=99").replace(CLOSE, b"")
    received = attack.exchange(kept + bad + request(b"/nothing").replace(CLOSE, b"") + kept + request())
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"422", b"404", b"200", b"200"]
    attack.unharmed()


def test_rubbish_behind_a_request_is_not_answered_as_one(attack: Any) -> None:
    received = attack.exchange(request().replace(CLOSE, b""), b"\0rubbish\r\n\r\n")
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200", b"400"]
    attack.unharmed()


def test_three_thousand_requests_in_one_piece_do_not_pile_up(attack: Any) -> None:
    with attack.connect() as client:
        reader = threading.Thread(target=lambda: b"".join(iter(lambda: client.recv(65536), b"")))
        reader.start()
        client.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 3_000 + request())
        reader.join(timeout=60)
        assert not reader.is_alive()
    attack.unharmed()


def test_three_hundred_silent_connections_leave_room_for_others(attack: Any) -> None:
    clients = [attack.connect() for _ in range(300)]
    try:
        attack.unharmed()
    finally:
        for client in clients:
            client.close()
