"""Bodies that are no good image, or an unusual one: raw and in forms."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from contracts.images import encode_png

PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
FORM = "multipart/form-data; boundary=b"


def post(body: bytes, content_type: str = "", path: str = "/v1/predict") -> bytes:
    """The request on the wire."""
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{kind}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def photo(mode: str = "RGB", kind: str = "JPEG", **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    return saved(Image.fromarray(rng.integers(0, 256, (24, 16, 3), dtype=np.uint8)).convert(mode), kind, **options)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2) -> bytes:
    """A PNG that announces a size, with these chunks behind its header."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks)


def pixels(data: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    frames = [Image.new("L", (8, 8), shade) for shade in (0, 128, 255)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return photo(exif=exif)


def form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(
        f'--b\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts
    ) + end  # fmt: skip


BOMB = png(50_000, 50_000, pixels(b"\0" * 64))

BAD: dict[str, tuple[bytes, int, str]] = {
    "empty": (post(b""), 400, "undecodable_image"),
    "one byte": (post(b"\x89"), 415, "not_an_image"),
    "PNG signature only": (post(PNG[:8]), 400, "undecodable_image"),
    "PNG without its end": (post(PNG[: len(PNG) // 2]), 400, "undecodable_image"),
    "PNG with flipped bytes": (post(PNG[:30] + b"\xff\xff\xff\xff" + PNG[34:]), 400, "undecodable_image"),
    "PNG without pixels": (post(png(8, 8, chunk(b"IEND", b""))), 400, "undecodable_image"),
    "PNG of no size": (post(png(0, 8, pixels(b""))), 400, "undecodable_image"),
    "PNG of an impossible depth": (post(png(8, 8, pixels(b"\0" * 999), depth=3)), 400, "undecodable_image"),
    "PNG whose chunk is longer than the file": (post(png(8, 8) + b"\x7f\xff\xff\xffIDAT"), 400, "undecodable_image"),
    "PNG of a text of 50 MB": (
        post(png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 50_000_000)), pixels(b"\0" * 999))),
        400,
        "undecodable_image",
    ),
    "JPEG signature only": (post(b"\xff\xd8\xff\xe0"), 400, "undecodable_image"),
    "JPEG of markers only": (post(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 5_000), 400, "undecodable_image"),
    "truncated JPEG": (post(photo()[:-200]), 400, "undecodable_image"),
    "truncated WebP": (post(photo(kind="WEBP")[:60]), 400, "undecodable_image"),
    "GIF without a frame": (post(photo("P", "GIF")[:13] + b";"), 400, "undecodable_image"),
    "BMP of a negative width": (
        post(photo(kind="BMP")[:18] + struct.pack("<i", -8) + photo(kind="BMP")[22:]),
        413,
        "too_large",
    ),
    "text said to be a PNG": (post(b"hello, this is no image", "image/png"), 415, "not_an_image"),
    "text said to be image/jpg": (post(b"hello", "image/jpg"), 415, "not_an_image"),
    "JSON": (post(b'{"image": "aGVsbG8="}', "application/json"), 415, "not_an_image"),
    "a JSON of 100,000 levels": (post(b"[" * 100_000, "application/json"), 415, "not_an_image"),
    "NUL bytes": (post(b"\0" * 5000), 415, "not_an_image"),
    "SVG": (post(b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', "image/svg+xml"), 415, "not_an_image"),
    "EPS": (post(saved(Image.new("L", (8, 8)), "EPS"), "image/eps"), 415, "not_an_image"),
    "EPS said to be a PNG": (post(saved(Image.new("L", (8, 8)), "EPS"), "image/png"), 415, "not_an_image"),
    "PDF": (post(saved(Image.new("L", (8, 8)), "PDF"), "application/pdf"), 415, "not_an_image"),
    "TIFF": (post(photo(kind="TIFF"), "image/tiff"), 415, "not_an_image"),
    "ICO": (post(photo(kind="ICO"), "image/x-icon"), 415, "not_an_image"),
    "pickle": (post(b"\x80\x04N.", "application/vnd.bentoml+pickle"), 415, "not_an_image"),
    "an address": (post(b"http://127.0.0.1:22/a.png", "text/plain"), 415, "not_an_image"),
    "RIFF that is no WebP": (post(b"RIFF\x10\0\0\0WAVEfmt 1234"), 415, "not_an_image"),
    "animated GIF": (post(animation("GIF"), "image/gif"), 415, "not_an_image"),
    "animated PNG": (post(animation("PNG"), "image/png"), 415, "not_an_image"),
    "animated WebP": (post(animation("WEBP"), "image/webp"), 415, "not_an_image"),
    "header of 50,000 x 50,000": (post(BOMB), 413, "too_large"),
    "header of 2^31-1 x 2^31-1": (post(png(2**31 - 1, 2**31 - 1, pixels(b"\0"))), 413, "too_large"),
    "header of 10,000 x 10,000": (post(png(10_000, 10_000, pixels(b"\0" * 64))), 413, "too_large"),
    "GIF of 65,535 x 65,535": (
        post(b"GIF89a" + b"\xff" * 4 + b"\0\0\0,\0\0\0\0" + b"\xff" * 4 + b"\0\2\0;"),
        413,
        "too_large",
    ),
    "more bytes than allowed": (post(b"\xff\xd8\xff" + b"\0" * 33_554_432), 413, "too_large"),
    "the bomb in a form": (post(form(("image", PNG), ("image", BOMB)), FORM), 413, "too_large"),
    "10,000 parts": (post(form(*[("image", b"")] * 10_000), FORM), 413, "too_large"),
    "one part too many": (post(form(*[("image", PNG)] * 65), FORM), 413, "too_large"),
    "wrong field name": (post(form(("file", PNG)), FORM), 422, "invalid_request"),
    "a field name of 4,000 bytes": (post(form(("a" * 4_000, PNG)), FORM), 422, "invalid_request"),
    "a second field": (post(form(("image", PNG), ("top_k", b"1")), FORM), 422, "invalid_request"),
    "no part": (post(form(), FORM), 422, "invalid_request"),
    "empty part": (post(form(("image", b"")), FORM), 400, "undecodable_image"),
    "one bad among many": (post(form(("image", PNG), ("image", b"text"), ("image", PNG)), FORM), 415, "not_an_image"),
    "form without its end": (post(form(("image", PNG), end=b""), FORM), 400, "malformed_body"),
    "form without a boundary": (post(b"--b\r\n", "multipart/form-data"), 400, "malformed_body"),
    "form of another boundary": (post(form(("image", PNG)), FORM[:-1] + "c"), 400, "malformed_body"),
    "form with a boundary of 5,000 bytes": (post(b"x", FORM + "b" * 5000), 400, "malformed_body"),
    "form with an empty boundary": (post(b"----\r\n", FORM[:-1]), 400, "malformed_body"),
    "garbage as a form": (post(b"\r\n\0garbage", FORM), 400, "malformed_body"),
    "empty form": (post(b"", FORM), 400, "malformed_body"),
    "multipart/mixed": (post(b"--b--", "multipart/mixed; boundary=b"), 400, "malformed_body"),
    "part without a name": (
        post(b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n", FORM),
        400,
        "malformed_body",
    ),
    "part with an endless header": (post(b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", FORM), 400, "malformed_body"),
    "part with 1,000 headers": (post(b"--b\r\n" + b"X: y\r\n" * 1_000 + b"\r\n", FORM), 400, "malformed_body"),
    "8 MB of almost boundaries": (post(form(("image", b"\r\n--" * 2_000_000)), FORM), 415, "not_an_image"),
    "a form in URL encoding": (post(b"image=a", "application/x-www-form-urlencoded"), 415, "not_an_image"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_body_is_refused_with_its_reason(attack: Any, case: str) -> None:
    sent, status, code = BAD[case]
    attack(sent, status=status, code=code)


GOOD = {
    "CMYK": photo("CMYK"),
    "gray": photo("L"),
    "YCbCr": photo("YCbCr"),
    "progressive": photo(progressive=True),
    "16-bit gray": saved(Image.fromarray((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)), "PNG"),
    "16-bit color": png(8, 8, pixels((b"\0" + b"\x12\x34" * 24) * 8), depth=16),
    "palette with alpha": saved(Image.new("RGBA", (8, 8), (200, 10, 10, 90)).quantize(8), "PNG", transparency=0),
    "gray with alpha": photo("LA", "PNG"),
    "1 bit": photo("1", "PNG"),
    "1 x 1": saved(Image.new("RGB", (1, 1)), "PNG"),
    "1 x 20,000": saved(Image.new("L", (1, 20_000)), "PNG"),
    "WebP": photo(kind="WEBP"),
    "lossless WebP": photo(kind="WEBP", lossless=True),
    "BMP": photo(kind="BMP"),
    "still GIF": photo("P", "GIF"),
    "an EXIF orientation that does not exist": rotated(99),
    "bytes behind its end": photo() + b"\0" * 1000,
    "an ICC profile of rubbish": photo(icc_profile=b"\xff" * 500),
    **{f"EXIF-rotated {number}": rotated(number) for number in range(1, 9)},
}


@pytest.mark.parametrize("case", GOOD)
def test_an_unusual_but_good_image_is_answered_whatever_its_declared_type(attack: Any, case: str) -> None:
    for content_type in ("image/jpg", "application/octet-stream", "image/png; a=\xff", "x" * 5_000):
        attack(post(GOOD[case], content_type), status=200)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_an_image_that_is_cut_anywhere_is_refused_or_whole(attack: Any, kind: str) -> None:
    data = photo("L" if kind == "GIF" else "RGB", kind)
    with httpx.Client(base_url=attack.service.url, timeout=20) as client:
        for end in range(0, len(data), 8):
            assert client.post("/v1/predict", content=data[:end]).status_code in (200, 400, 415), end
    attack.unharmed()


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_an_image_of_just_as_many_pixels_as_allowed_is_answered_and_leaves_no_memory_behind(
    attack: Any, mode: str
) -> None:
    """Some 50 kB on the wire, and hundreds of megabytes while it is decoded: too much work for a slow machine."""
    depth, color, size = {"L": (8, 0, 1), "RGBA": (8, 6, 4), "I;16": (16, 0, 2)}[mode]
    data = png(7_000, 7_000, pixels(b"\0" * (7_000 * size + 1) * 7_000), depth=depth, color=color)
    attack(post(data), status=(200, 429))


def test_the_bad_image_among_many_is_named(attack: Any) -> None:
    body = form(("image", PNG), ("image", PNG), ("image", b"text"))
    assert b"image 2 of 3" in attack.exchange(post(body, FORM))
