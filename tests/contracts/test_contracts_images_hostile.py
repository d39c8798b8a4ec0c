"""The only decode path: nothing but image errors for hostile bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from contracts.errors import ImageError, NotAnImage, TooLarge
from contracts.images import decode
from tests.contracts.pictures import encoded, gray, outcome, png_header, spec_of


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 128, 255)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    with pytest.raises(NotAnImage, match="animation"):
        decode(data, spec_of(8, 8, 3))


def test_a_jpeg_with_a_second_picture_behind_it_is_the_first_one() -> None:
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert data.startswith(b"\xff\xd8\xff")
    assert np.abs(decode(data, spec_of(16, 16, 3)).astype(int) - [250, 0, 0]).max() <= 4


def test_no_bytes_are_refused() -> None:
    with pytest.raises(ImageError, match="empty"):
        decode(b"", spec_of())


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"\x00" * 100,
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"II*\x00" + b"\x00" * 100,
        b"RIFF\x24\x00\x00\x00WAVEfmt " + b"\x00" * 40,
        b"\x1f\x8b\x08",
        b'{"image": 1}',
        b"8BPS",
    ],
)
def test_bytes_of_another_kind_are_not_an_image(data: bytes) -> None:
    with pytest.raises(NotAnImage, match="JPEG, PNG, WEBP, BMP, GIF"):
        decode(data, spec_of())


def _samples() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [image, image.rotate(90)]
    return {
        "JPEG": encoded(image, "JPEG", exif=exif),
        "progressive": encoded(image, "JPEG", progressive=True),
        "PNG": encoded(image, "PNG", exif=exif),
        "palette": encoded(image.convert("P"), "PNG", transparency=0),
        "16 bits": encoded(Image.fromarray(random.integers(0, 65536, (12, 12), dtype=np.uint16)), "PNG"),
        "WEBP": encoded(image, "WEBP", exif=exif),
        "lossless": encoded(image, "WEBP", lossless=True),
        "BMP": encoded(image, "BMP"),
        "GIF": encoded(image, "GIF"),
        "animation": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "MPO": encoded(frames[0], "MPO", save_all=True, append_images=frames[1:]),
    }


@pytest.mark.parametrize("kind", _samples())
def test_a_file_cut_at_every_eighth_byte_gives_an_image_or_an_image_error(kind: str) -> None:
    data = _samples()[kind]
    outcomes = [outcome(data[:end], spec_of(12, 12, 3)) for end in range(0, len(data), 8)]
    assert outcomes[0] == "refused"
    assert set(outcomes) <= {"image", "refused"}


@pytest.mark.parametrize("kind", _samples())
def test_a_file_with_damaged_bytes_gives_an_image_or_an_image_error(kind: str) -> None:
    # A fixed seed, so that a failure can be repeated.
    random = np.random.default_rng(1)
    data = _samples()[kind]
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), random.integers(1, 6)):
            damaged[place] = random.integers(0, 256)
        assert outcome(bytes(damaged), spec_of(12, 12, 3)) in ("image", "refused")


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 10_000), (8_000, 7_000)])
def test_a_header_that_announces_too_many_pixels_is_refused_before_anything_is_decoded(size: tuple[int, int]) -> None:
    # It holds no pixel data at all: to try to decode it would be another error.
    with pytest.raises(TooLarge, match="50,000,000"):
        decode(png_header(*size), spec_of())


def test_the_limit_of_pixels_is_the_callers() -> None:
    data = encoded(gray(), "PNG")
    assert decode(data, spec_of(), max_pixels=24).shape == (6, 4, 1)
    with pytest.raises(TooLarge, match="4x6 pixels, more than the limit of 23"):
        decode(data, spec_of(), max_pixels=23)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBP", b"BM", b"GIF89a"]),
    st.binary(max_size=200),
)
def test_no_bytes_whatever_raise_anything_but_an_image_error(magic: bytes, rest: bytes) -> None:
    assert outcome(magic + rest, spec_of()) in ("image", "refused")
