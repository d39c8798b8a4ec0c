"""services.inference.keys: what a file of keys may hold, how it is followed, and that nothing goes round it."""

from __future__ import annotations

import hmac
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from contracts.errors import RecipeError, Unauthorized
from contracts.images import encode_png
from services.inference import keys
from services.inference.keys import OPEN, Keys

KEY = "9f2c41d7a0f0c1e2d3b4"
OTHER = "the-second.key_of~16+/="
METRICS = "what-prometheus-holds"
PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# shops\n\n{KEY}   # the web shop\nsha256:{sha256(OTHER.encode()).hexdigest()}\r\n")
    return path


@pytest.mark.parametrize(
    "headers",
    [
        bearer(KEY),
        bearer(OTHER),
        [(b"authorization", b"bEARER   " + KEY.encode())],
        [(b"x-api-key", OTHER.encode())],
        [(b"authorization", b"Basic abc"), (b"x-api-key", KEY.encode())],
    ],
)
def test_a_known_key_passes_in_either_header_whether_the_file_holds_it_or_its_digest(
    file: Path, headers: list[tuple[bytes, bytes]]
) -> None:
    Keys(file).check(headers)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(KEY + "0"),
        bearer(KEY[:-1]),
        bearer(sha256(OTHER.encode()).hexdigest()),  # the digest is not the key
        bearer("sha256:" + sha256(OTHER.encode()).hexdigest()),
        bearer(""),
        [(b"authorization", KEY.encode())],
        [(b"authorization", b"Basic " + KEY.encode())],
        [(b"cookie", KEY.encode())],
        [(b"x-api-key", b"\xff\x00")],
    ],
)
def test_anything_else_is_refused(file: Path, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(Unauthorized):
        Keys(file).check(headers)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no key"),
        (b"# nothing\n\n", "holds no key"),
        (b"short\n", "line 1 of"),
        (b"# one\n9f2c41d7a0f0c1e2 d3b4secret\n", "line 2 of"),
        (b"sha256:abc\n", "line 1 of"),
        (b"sha256:" + b"g" * 64, "line 1 of"),
        ("schl\N{LATIN SMALL LETTER U WITH DIAERESIS}ssel-mit-umlaut".encode(), "line 1 of"),
        (b"\xff\xfe0123456789abcdef", "it is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_file_of_keys_is_refused_without_showing_what_is_in_it(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as refused:
        Keys(path)
    assert said in refused.value.message
    assert "\n" not in refused.value.message
    assert "secret" not in refused.value.message


def test_a_changed_file_is_followed_and_an_unreadable_change_is_not(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "_LOOK_S", 0.0)
    known = Keys(file)
    replace(file, f"{KEY}\n")
    with pytest.raises(Unauthorized):
        known.check(bearer(OTHER))
    known.check(bearer(KEY))
    for broken in ("not a key", "", None):
        replace(file, broken)
        known.check(bearer(KEY))
        with pytest.raises(Unauthorized):
            known.check([])
    replace(file, f"{OTHER}\n")
    known.check(bearer(OTHER))
    with pytest.raises(Unauthorized):
        known.check(bearer(KEY))


def test_a_key_for_the_metrics_opens_nothing_else(file: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text(f"{METRICS}\n")
    known = Keys(file, metrics=tmp_path / "metrics")
    known.check(bearer(METRICS), "/metrics")
    known.check(bearer(KEY), "/metrics")
    for headers, path in ((bearer(METRICS), "/v1/predict"), (bearer("x" * 20), "/metrics"), ([], "/metrics")):
        with pytest.raises(Unauthorized):
            known.check(headers, path)


def test_every_key_is_compared_whichever_fits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    known = Keys(file)
    known.check(bearer(KEY))
    with pytest.raises(Unauthorized):
        known.check(bearer("x" * 20))
    assert len(compared) == 4


def replace(file: Path, content: str | None) -> None:
    """As a deployment does it: another file in its place."""
    file.unlink(missing_ok=True)
    if content is not None:
        staged = file.with_suffix(".new")
        staged.write_text(content)
        staged.replace(file)


@pytest.mark.parametrize("content", [None, "short", ""])
def test_a_service_without_a_usable_file_does_not_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    ended = subprocess.run(
        [sys.executable, "-c", "import services.inference.service"],
        env={"STRIDE_API_KEYS_FILE": str(path), "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert re.fullmatch(r"stride: STRIDE_API_KEYS_FILE.*\.\n", ended.stderr), ended.stderr


def ask(url: str, head: bytes) -> bytes:
    """What is answered to a head whose body never comes."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(head)
        return client.recv(65536)


def test_nothing_of_the_service_is_reached_without_a_key(
    start_service: Callable[..., Any], tiny: Any, tmp_path: Path, file: Path
) -> None:
    (tmp_path / "metrics").write_text(METRICS)
    service = start_service(
        stored={"shapes": tiny(1).bundle(tmp_path / "b")},
        STRIDE_API_KEYS_FILE=str(file),
        STRIDE_METRICS_KEYS_FILE=str(tmp_path / "metrics"),
        STRIDE_BODY_SECONDS="600",
    )
    service.wait()
    # The very first request, before ours stand in front of BentoML's routes, and refused before its body.
    native = ask(service.url, b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    assert native.startswith(b"HTTP/1.1 401")
    paths = [
        "/v1/predict",
        "/v1/models/shapes/predict",
        "/predict",
        "/v2/models/shapes/infer",
        "/schema.json",
        "/nothing",
    ]
    paths += ["/v1/models", "/metrics", "/v2", "/v2/models/shapes/ready", "/livez/", "/readyz/x", "/static_content/x"]
    for path in paths:
        for method in (b"POST", b"GET"):
            head = b"%b %b HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000000\r\n\r\n" % (method, path.encode())
            answer = ask(service.url, head)
            assert answer.startswith(b"HTTP/1.1 401"), (path, answer)
            assert b'www-authenticate: Bearer realm="stride"' in answer
    with httpx.Client(base_url=service.url, timeout=20) as client:
        for path in OPEN:
            assert client.get(path).status_code == 200, path
        refused = client.post("/v1/predict", content=PNG, headers={"Authorization": "Bearer wrong-key-not-ours-1"})
        assert refused.json()["code"] == "unauthorized"
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"X-API-Key": OTHER}):
            assert client.post("/v1/predict", content=PNG, headers=headers).status_code == 200
            assert client.get("/v1/models", headers=headers).status_code == 200
        text = client.get("/metrics", headers={"X-API-Key": KEY}).text
        assert 'stride_errors_total{code="unauthorized"}' in text
        assert client.get("/metrics", headers={"Authorization": f"Bearer {METRICS}"}).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {METRICS}"}).status_code == 401
        replace(file, f"{OTHER}\n")
        until = time.monotonic() + 20
        while client.get("/v1/models", headers={"X-API-Key": KEY}).status_code != 401:
            assert time.monotonic() < until
            time.sleep(0.05)
    log = service.log.read_text()
    assert "keys_read" in log
    for secret in (KEY, OTHER, "wrong-key-not-ours-1"):
        assert secret not in log
    assert os.fspath(file) in str(service.environment)


def test_v2_says_it_in_its_own_way(start_service: Callable[..., Any], tiny: Any, tmp_path: Path, file: Path) -> None:
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")}, STRIDE_API_KEYS_FILE=str(file))
    service.wait()
    refused = httpx.post(f"{service.url}/v2/models/shapes/infer", content=b"{}")
    assert refused.status_code == 401
    assert "API key" in refused.json()["error"]


def test_probes_say_only_yes_or_no_to_who_has_no_key(
    start_service: Callable[..., Any], tmp_path: Path, file: Path
) -> None:
    service = start_service(STRIDE_API_KEYS_FILE=str(file))
    service.wait("/livez")
    for path in ("/readyz", "/v2/health/ready"):
        answer = httpx.get(f"{service.url}{path}")
        assert answer.status_code == 503
        assert "no model" not in answer.text
        assert "127.0.0.1:9" not in answer.text
    assert "127.0.0.1:9" in httpx.get(f"{service.url}/v1/models", headers={"X-API-Key": KEY}).text


def test_a_refusal_behind_another_request_has_no_part_in_its_trace(
    start_service: Callable[..., Any], tiny: Any, tmp_path: Path, file: Path
) -> None:
    service = start_service(stored={"shapes": tiny(1).bundle(tmp_path / "b")}, STRIDE_API_KEYS_FILE=str(file))
    service.wait()
    parent = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    first = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-API-Key: %b\r\ntraceparent: %b\r\n\r\n" % (KEY.encode(), parent)
    second = b"GET /schema.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as client:
        client.sendall(first + second)
        answers = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"HTTP/1.1 401" in answers
    assert answers.count(b"traceresponse") == 1
