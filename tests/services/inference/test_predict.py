"""services.inference.predict and hostile bodies: the right refusal, never a 5xx, the next request is answered."""

from __future__ import annotations

import asyncio
import io
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import CollectorRegistry

from contracts.bundle import Bundle
from contracts.errors import Overloaded
from contracts.images import encode_png
from services.inference.batcher import Batcher
from services.inference.engine import Engine
from services.inference.errors import SlowBody
from services.inference.metrics import Metrics
from services.inference.models import Model, Models
from services.inference.predict import Predictor
from services.inference.provider import CPU, Provider
from services.inference.settings import Settings
from services.inference.store import Served

Images = Callable[[int], NDArray[np.uint8]]
Body = tuple[bytes, str | None]


def photo(mode: str = "RGB", kind: str = "JPEG", **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 16, 3), dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds nothing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 64)
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def animation() -> bytes:
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 128, 255)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def sixteen_bit() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def palette_alpha() -> bytes:
    picture = Image.new("RGBA", (8, 8), (200, 10, 10, 90)).quantize(8)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", transparency=0)
    return buffer.getvalue()


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return photo(exif=exif)


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> Body:
    body = b"".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts
    )
    return body + end, "multipart/form-data; boundary=b"


PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
CASES: dict[str, tuple[Body, int, str]] = {
    "empty": ((b"", None), 400, "undecodable_image"),
    "one byte": ((b"\x89", None), 415, "not_an_image"),
    "PNG signature only": ((PNG[:8], None), 400, "undecodable_image"),
    "truncated PNG": ((photo(kind="PNG")[:-400], None), 400, "undecodable_image"),
    "PNG without its end": ((PNG[: len(PNG) // 2], None), 400, "undecodable_image"),
    "truncated JPEG": ((photo()[:-200], None), 400, "undecodable_image"),
    "JPEG signature only": ((b"\xff\xd8\xff\xe0", None), 400, "undecodable_image"),
    "PNG with flipped bytes": ((PNG[:30] + b"\xff\xff\xff\xff" + PNG[34:], None), 400, "undecodable_image"),
    "text": ((b"hello, this is no image", "image/png"), 415, "not_an_image"),
    "JSON": ((b'{"image": "aGVsbG8="}', "application/json"), 415, "not_an_image"),
    "NUL bytes": ((b"\0" * 5000, None), 415, "not_an_image"),
    "SVG": ((b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', "image/svg+xml"), 415, "not_an_image"),
    "EPS": ((b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/eps"), 415, "not_an_image"),
    "TIFF": ((photo(kind="TIFF"), "image/tiff"), 415, "not_an_image"),
    "pickle": ((b"\x80\x04N.", "application/vnd.bentoml+pickle"), 415, "not_an_image"),
    "RIFF that is no WebP": ((b"RIFF\x10\0\0\0WAVEfmt 1234", None), 415, "not_an_image"),
    "animated GIF": ((animation(), None), 415, "not_an_image"),
    "header of 50000x50000": ((png_header(50_000, 50_000), None), 413, "too_large"),
    "header of 10000x10000": ((png_header(10_000, 10_000), None), 413, "too_large"),
    "too many bytes": ((b"\xff\xd8\xff" + b"\0" * 300_000, None), 413, "too_large"),
    "too many parts": (form(*[("image", PNG)] * 9), 413, "too_large"),
    "2,000 empty parts": (form(*[("image", b"")] * 2_000), 413, "too_large"),
    "wrong field name": (form(("file", PNG)), 422, "invalid_request"),
    "a second field": (form(("image", PNG), ("top_k", b"1")), 422, "invalid_request"),
    "no part": (form(), 422, "invalid_request"),
    "empty part": (form(("image", b"")), 400, "undecodable_image"),
    "one bad among many": (form(("image", PNG), ("image", b"text"), ("image", PNG)), 415, "not_an_image"),
    "form without its end": (form(("image", PNG), end=b""), 400, "malformed_body"),
    "form without a boundary": ((b"--b\r\n", "multipart/form-data"), 400, "malformed_body"),
    "form of another boundary": ((form(("image", PNG))[0], "multipart/form-data; boundary=c"), 400, "malformed_body"),
    "form with a long boundary": ((b"x", "multipart/form-data; boundary=" + "b" * 5000), 400, "malformed_body"),
    "garbage as a form": ((b"\r\n\0garbage", "multipart/form-data; boundary=b"), 400, "malformed_body"),
    "empty form": ((b"", "multipart/form-data; boundary=b"), 400, "malformed_body"),
    "multipart/mixed": ((b"--b--", "multipart/mixed; boundary=b"), 400, "malformed_body"),
    "part without a name": (
        (b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b"),
        400,
        "malformed_body",
    ),
    "part with an endless header": (
        (b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "multipart/form-data; boundary=b"),
        400,
        "malformed_body",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_body_is_refused_rightly_and_the_next_request_is_answered(http: httpx.Client, case: str) -> None:
    (body, content_type), status, code = CASES[case]
    headers = {"content-type": content_type} if content_type else {}
    response = http.post("/v1/predict", content=body, headers=headers)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), problem
    assert "Traceback" not in response.text
    assert "\n" not in problem["detail"]
    assert http.post("/v1/predict", content=PNG).status_code == 200


@pytest.mark.parametrize(
    "body",
    [photo("CMYK"), photo("L"), sixteen_bit(), palette_alpha(), rotated(), photo(kind="WEBP"), photo(kind="BMP"),
     photo("P", "GIF"), photo("1", "PNG"), photo("LA", "PNG"), photo(progressive=True)],
    ids=["CMYK", "gray", "16-bit", "palette+alpha", "EXIF", "WebP", "BMP", "GIF", "1-bit", "gray+alpha", "progressive"],
)  # fmt: skip
def test_unusual_but_good_images_are_answered(http: httpx.Client, body: bytes) -> None:
    assert http.post("/v1/predict", content=body).status_code == 200


def test_a_truncated_image_never_breaks_the_service_wherever_it_is_cut(http: httpx.Client) -> None:
    for data in (PNG, photo()):
        for end in range(0, len(data), 8):
            assert http.post("/v1/predict", content=data[:end]).status_code in (200, 400, 415)


def test_the_bad_image_among_many_is_named(http: httpx.Client) -> None:
    body, content_type = form(("image", PNG), ("image", PNG), ("image", b"text"))
    response = http.post("/v1/predict", content=body, headers={"content-type": str(content_type)})
    assert "image 2 of 3" in response.json()["detail"]


def test_a_stream_without_a_length_is_cut_at_the_limit(http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b"\xff\xd8\xff" + b"\0" * 16_384

    response = http.post("/v1/predict", content=endless())
    assert (response.status_code, response.json()["code"]) == (413, "too_large")


def test_five_declared_gigabytes_are_refused_before_they_are_sent(http: httpx.Client) -> None:
    with socket.create_connection((http.base_url.host, int(http.base_url.port or 0)), timeout=5) as client:
        client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000000\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_in_the_middle_harms_nobody(http: httpx.Client) -> None:
    address = (http.base_url.host, int(http.base_url.port or 0))
    for sent in (b"", PNG[:20]):
        with socket.create_connection(address, timeout=5) as client:
            client.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 70\r\n\r\n" + sent)
    assert http.post("/v1/predict", content=PNG).status_code == 200


class Never:
    """A client whose body does not come."""

    async def __call__(self) -> dict[str, Any]:
        await asyncio.sleep(3600)
        return {}


def predictor(bundle: Bundle, **options: Any) -> tuple[Predictor, Models]:
    """A predictor that serves `bundle`, inside the running loop."""
    metrics = Metrics(CollectorRegistry())
    models = Models(default=None, metrics=metrics)
    engine = Engine(bundle, Provider(CPU, "a test"), threads=1, max_batch=4)
    batcher = Batcher(engine.infer, loop=asyncio.get_running_loop(), max_batch=4, queue_rows=64)
    models.swap(Model(Served("shapes", "1", bundle.digest, 1), engine, batcher))
    settings = Settings(home=bundle.path, tracking_uri="", **options)
    return Predictor(settings, models, metrics, decoders=1), models


SCOPE: dict[str, Any] = {"query_string": b"", "headers": []}


def test_a_body_that_begins_while_the_service_ends_is_cut_as_well(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        served, models = predictor(tiny(1).bundle(tmp_path / "b"))
        begun = asyncio.ensure_future(served.predict(SCOPE, Never(), None))
        await asyncio.sleep(0)
        served.cut_bodies(0.05)
        for request in (begun, served.predict(SCOPE, Never(), None)):
            with pytest.raises(SlowBody):
                await asyncio.wait_for(request, 5)
        await models.drain()

    asyncio.run(main())


def test_the_end_of_the_service_gives_no_body_more_time_than_it_had(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        served, models = predictor(tiny(1).bundle(tmp_path / "b"), body_s=0.05)
        begun = asyncio.ensure_future(served.predict(SCOPE, Never(), None))
        await asyncio.sleep(0)
        served.cut_bodies(60)
        with pytest.raises(SlowBody):
            await asyncio.wait_for(begun, 5)
        await models.drain()

    asyncio.run(main())


def test_the_deadline_holds_while_a_request_waits_for_its_decoding(tiny: Any, tmp_path: Path) -> None:
    async def main() -> None:
        served, models = predictor(tiny(1).bundle(tmp_path / "b"), deadline_s=0.05)
        free = threading.Event()
        served._pool.submit(free.wait, 10)  # the one decoder is busy

        async def body() -> dict[str, Any]:
            return {"type": "http.request", "body": photo(), "more_body": False}

        try:
            with pytest.raises(Overloaded, match="deadline"):
                await asyncio.wait_for(served.predict(SCOPE, body, None), 5)
            assert models.get().batcher.rows == 0
        finally:
            free.set()
            served.close()
            await models.drain()

    asyncio.run(main())
