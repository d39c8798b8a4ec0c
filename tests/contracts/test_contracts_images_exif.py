"""The only decode path: a picture stands as its camera was held."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from contracts.images import decode
from tests.contracts.pictures import PATTERN, encoded, gray, outcome, rgb, spec_of

ORIENTATIONS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(np.transpose(a), 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_each_exif_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = ORIENTATIONS[orientation](PATTERN)
    array = decode(encoded(gray(), "PNG", exif=exif), spec_of(*expected.shape))
    np.testing.assert_array_equal(array[:, :, 0], expected)


def test_an_orientation_is_found_wherever_pillow_finds_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = PngImagePlugin.PngInfo()
    profile.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n")
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    packet = PngImagePlugin.PngInfo()
    packet.add_itxt("XML:com.adobe.xmp", xmp)
    turned = ORIENTATIONS[6](PATTERN)
    for name, data in {
        "a profile in a text": encoded(gray(), "PNG", pnginfo=profile),
        "XMP in a PNG": encoded(gray(), "PNG", pnginfo=packet),
        "XMP in a WebP": encoded(gray(), "WEBP", xmp=xmp.encode(), lossless=True),
    }.items():
        np.testing.assert_array_equal(decode(data, spec_of(*turned.shape)), turned[:, :, np.newaxis], err_msg=name)


def test_exif_orientation_is_applied_to_a_jpeg_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    half = np.zeros((32, 16), dtype=np.uint8)
    half[:16] = 255  # white on top: after a quarter turn clockwise, white on the right
    array = decode(encoded(gray(half), "JPEG", exif=exif, quality=95), spec_of(16, 32))
    assert array[:, :14].max() < 20
    assert array[:, 18:].min() > 235


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\x00\x00", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00" + b"\xff" * 50]
)
def test_broken_exif_gives_an_image_or_an_image_error(exif: bytes) -> None:
    data = encoded(Image.fromarray(rgb()), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert outcome(data[:2] + segment + data[2:], spec_of(channels=3)) in ("image", "refused")
