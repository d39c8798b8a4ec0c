"""The only decode path: every format and mode in, one tensor out, and nothing but image errors for hostile bytes."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from contracts.errors import ImageError, NotAnImage, TooLarge
from contracts.images import ImageSpec, decode, encode_png

# Four different corners, a different height and width: no flip or turn of it looks like another.
PATTERN = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10


def _spec(height: int = 6, width: int = 4, channels: Literal[1, 3] = 1, **options: Any) -> ImageSpec:
    return ImageSpec(height=height, width=width, channels=channels, **options)


def _bytes(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _gray(pattern: NDArray[np.uint8] = PATTERN) -> Image.Image:
    return Image.fromarray(pattern)


def _rgb() -> NDArray[np.uint8]:
    return np.stack([PATTERN, 255 - PATTERN, PATTERN // 2], axis=-1)


def _outcome(data: bytes, spec: ImageSpec) -> str:
    """What becomes of hostile bytes; any error that is not an ImageError comes out and fails the test."""
    try:
        array = decode(data, spec, max_pixels=1_000_000)  # so that a damaged header cannot ask for gigabytes
    except ImageError as error:
        return "more than one line" if "\n" in error.message else "refused"
    return "image" if array.shape == spec.shape and array.dtype == np.uint8 else "another tensor"


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", header) + _png_chunk(b"IDAT", b"") + _png_chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_a_gray_image_of_each_lossless_format_comes_back_unchanged(kind: str) -> None:
    array = decode(_bytes(_gray(), kind), _spec())
    assert array.dtype == np.uint8
    assert array.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(array[:, :, 0], PATTERN)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_a_colour_image_of_each_lossless_format_comes_back_unchanged(kind: str, options: dict[str, Any]) -> None:
    array = decode(_bytes(Image.fromarray(_rgb()), kind, **options), _spec(channels=3))
    np.testing.assert_array_equal(array, _rgb())


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_a_smooth_image_of_each_lossy_format_comes_back_nearly_unchanged(kind: str, options: dict[str, Any]) -> None:
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)[None, :].repeat(32, axis=0)
    array = decode(_bytes(_gray(ramp), kind, **options), _spec(32, 32))
    assert np.abs(array[:, :, 0].astype(int) - ramp).max() <= 4


def test_gray_becomes_three_equal_channels() -> None:
    array = decode(_bytes(_gray(), "PNG"), _spec(channels=3))
    np.testing.assert_array_equal(array, PATTERN[..., None].repeat(3, axis=-1))


def test_colour_becomes_itu_r_601_luma() -> None:
    array = decode(_bytes(Image.fromarray(_rgb()), "PNG"), _spec())
    luma = _rgb() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(array[:, :, 0] - luma).max() <= 0.51


def test_an_unused_alpha_channel_changes_nothing() -> None:
    opaque = np.dstack([_rgb(), np.full_like(PATTERN, 255)])
    np.testing.assert_array_equal(decode(_bytes(Image.fromarray(opaque), "PNG"), _spec(channels=3)), _rgb())


@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_on_the_background(background: int, kind: str) -> None:
    pixels = np.array([[[200, 100, 50, 0], [200, 100, 50, 255], [200, 100, 50, 128]]], dtype=np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    array = decode(_bytes(Image.fromarray(pixels), kind, **options), _spec(1, 3, 3, background=background))
    half = np.array([200, 100, 50]) * (128 / 255) + background * (127 / 255)
    np.testing.assert_array_equal(array[0, 0], [background] * 3)
    np.testing.assert_array_equal(array[0, 1], [200, 100, 50])
    assert np.abs(array[0, 2] - half).max() <= 1


def test_gray_with_alpha_is_laid_on_the_background() -> None:
    image = Image.merge("LA", [_gray(), Image.fromarray(np.where(PATTERN > 100, 255, 0).astype(np.uint8))])
    array = decode(_bytes(image, "PNG"), _spec(background=7))
    np.testing.assert_array_equal(array[:, :, 0], np.where(PATTERN > 100, PATTERN, 7))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_the_background(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 759)
    array = decode(_bytes(image, kind, transparency=1), _spec(2, 2, 3, background=9))
    np.testing.assert_array_equal(array, [[[255, 0, 0], [9, 9, 9]], [[0, 0, 255], [9, 9, 9]]])


def test_a_palette_becomes_its_colours() -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60] + [0] * 762)
    np.testing.assert_array_equal(decode(_bytes(image, "PNG"), _spec(1, 2, 3)), [[[10, 20, 30], [40, 50, 60]]])


def test_one_bit_becomes_black_and_white() -> None:
    array = decode(_bytes(_gray().point(lambda value: 255 * (value > 100)).convert("1"), "PNG"), _spec())
    np.testing.assert_array_equal(array[:, :, 0], np.where(PATTERN > 100, 255, 0))


def test_sixteen_bits_are_rescaled_and_not_clipped() -> None:
    samples = np.array([[0, 255, 256, 32768, 65535, 257 * 100]], dtype=np.uint16)
    array = decode(_bytes(Image.fromarray(samples), "PNG"), _spec(1, 6))
    np.testing.assert_array_equal(array[0, :, 0], [0, 1, 1, 128, 255, 100])


def test_every_sixteen_bit_sample_is_rounded_to_the_nearest_eight_bit_one_also_across_strips() -> None:
    samples = np.tile(np.arange(65536, dtype=np.uint16).reshape(256, 256), (3, 1))[:700]
    array = decode(_bytes(Image.fromarray(samples), "PNG"), _spec(700, 256))
    np.testing.assert_array_equal(array[:, :, 0], np.rint(samples / 257).astype(np.uint8))


def test_a_large_sixteen_bit_image_takes_little_more_memory_than_its_samples() -> None:
    data = _bytes(Image.fromarray(np.zeros((3000, 3000), dtype=np.uint16)), "PNG")
    tracemalloc.start()
    decode(data, _spec(8, 8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9_000_000 * 5  # numpy's part: eight bytes a sample before strips, and as much again in floats


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    array = decode(_bytes(cmyk, "JPEG", quality=95), _spec(16, 16, 3))
    assert np.abs(array.astype(int) - [255, 0, 0]).max() <= 4


# What an EXIF orientation says: how the stored rows and columns are to be turned to stand upright.
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
    array = decode(_bytes(_gray(), "PNG", exif=exif), _spec(*expected.shape))
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
        "a profile in a text": _bytes(_gray(), "PNG", pnginfo=profile),
        "XMP in a PNG": _bytes(_gray(), "PNG", pnginfo=packet),
        "XMP in a WebP": _bytes(_gray(), "WEBP", xmp=xmp.encode(), lossless=True),
    }.items():
        np.testing.assert_array_equal(decode(data, _spec(*turned.shape)), turned[:, :, np.newaxis], err_msg=name)


def test_exif_orientation_is_applied_to_a_jpeg_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    half = np.zeros((32, 16), dtype=np.uint8)
    half[:16] = 255  # white on top: after a quarter turn clockwise, white on the right
    array = decode(_bytes(_gray(half), "JPEG", exif=exif, quality=95), _spec(16, 32))
    assert array[:, :14].max() < 20
    assert array[:, 18:].min() > 235


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\x00\x00", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00" + b"\xff" * 50]
)
def test_broken_exif_gives_an_image_or_an_image_error(exif: bytes) -> None:
    data = _bytes(Image.fromarray(_rgb()), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert _outcome(data[:2] + segment + data[2:], _spec(channels=3)) in ("image", "refused")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 128, 255)]
    data = _bytes(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    with pytest.raises(NotAnImage, match="animation"):
        decode(data, _spec(8, 8, 3))


def test_a_jpeg_with_a_second_picture_behind_it_is_the_first_one() -> None:
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    data = _bytes(first, "MPO", save_all=True, append_images=[second])
    assert data.startswith(b"\xff\xd8\xff")
    assert np.abs(decode(data, _spec(16, 16, 3)).astype(int) - [250, 0, 0]).max() <= 4


def test_no_bytes_are_refused() -> None:
    with pytest.raises(ImageError, match="empty"):
        decode(b"", _spec())


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
        decode(data, _spec())


def _samples() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [image, image.rotate(90)]
    return {
        "JPEG": _bytes(image, "JPEG", exif=exif),
        "progressive": _bytes(image, "JPEG", progressive=True),
        "PNG": _bytes(image, "PNG", exif=exif),
        "palette": _bytes(image.convert("P"), "PNG", transparency=0),
        "16 bits": _bytes(Image.fromarray(random.integers(0, 65536, (12, 12), dtype=np.uint16)), "PNG"),
        "WEBP": _bytes(image, "WEBP", exif=exif),
        "lossless": _bytes(image, "WEBP", lossless=True),
        "BMP": _bytes(image, "BMP"),
        "GIF": _bytes(image, "GIF"),
        "animation": _bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "MPO": _bytes(frames[0], "MPO", save_all=True, append_images=frames[1:]),
    }


@pytest.mark.parametrize("kind", _samples())
def test_a_file_cut_at_every_eighth_byte_gives_an_image_or_an_image_error(kind: str) -> None:
    data = _samples()[kind]
    outcomes = [_outcome(data[:end], _spec(12, 12, 3)) for end in range(0, len(data), 8)]
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
        assert _outcome(bytes(damaged), _spec(12, 12, 3)) in ("image", "refused")


@pytest.mark.parametrize("size", [(50_000, 50_000), (10_000, 10_000), (8_000, 7_000)])
def test_a_header_that_announces_too_many_pixels_is_refused_before_anything_is_decoded(size: tuple[int, int]) -> None:
    # It holds no pixel data at all: to try to decode it would be another error.
    with pytest.raises(TooLarge, match="50,000,000"):
        decode(_png_header(*size), _spec())


def test_the_limit_of_pixels_is_the_callers() -> None:
    data = _bytes(_gray(), "PNG")
    assert decode(data, _spec(), max_pixels=24).shape == (6, 4, 1)
    with pytest.raises(TooLarge, match="4x6 pixels, more than the limit of 23"):
        decode(data, _spec(), max_pixels=23)


def test_stretch_ignores_the_aspect_ratio() -> None:
    left_right = np.array([[0, 0, 200, 200]] * 2, dtype=np.uint8)
    array = decode(_bytes(_gray(left_right), "PNG"), _spec(8, 2, resize="stretch"))
    # Halving with antialiased bilinear weighs (1, 3, 3, 1) and cuts at the border: (1+3+3)/7 of the pixels inside.
    np.testing.assert_array_equal(array[:, :, 0], [[round(200 / 7), round(200 * 6 / 7)]] * 8)


def test_a_larger_size_is_interpolated_bilinearly() -> None:
    array = decode(_bytes(_gray(np.array([[0, 100]], dtype=np.uint8)), "PNG"), _spec(1, 4))
    np.testing.assert_array_equal(array[0, :, 0], [0, 25, 75, 100])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(4, 8), (8, 4)])
def test_pad_keeps_the_aspect_ratio_and_fills_with_the_background(
    height: int, width: int, channels: Literal[1, 3]
) -> None:
    data = _bytes(_gray(np.full((height, width), 200, dtype=np.uint8)), "PNG")
    array = decode(data, _spec(8, 8, channels, resize="pad", background=7))
    expected = np.full((8, 8, channels), 7, dtype=np.uint8)
    rows, columns = slice((8 - height) // 2, (8 + height) // 2), slice((8 - width) // 2, (8 + width) // 2)
    expected[rows, columns] = 200
    np.testing.assert_array_equal(array, expected)


def test_crop_keeps_the_aspect_ratio_and_cuts_the_middle() -> None:
    stripes = np.repeat(np.array([[10, 20, 30, 40]], dtype=np.uint8), 2, axis=1).repeat(4, axis=0)  # 4 rows, 8 columns
    array = decode(_bytes(_gray(stripes), "PNG"), _spec(4, 4, resize="crop"))
    np.testing.assert_array_equal(array[:, :, 0], [[20, 20, 30, 30]] * 4)


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (17, 5)])
def test_every_size_can_be_brought_to_the_specs(size: tuple[int, int], resize: str) -> None:
    data = _bytes(_gray(np.full(size, 90, dtype=np.uint8)), "PNG")
    array = decode(data, _spec(8, 8, resize=resize))
    assert array.shape == (8, 8, 1)
    assert array.max() == 90


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    for resize in ("stretch", "pad", "crop"):
        np.testing.assert_array_equal(decode(encode_png(noise[..., None]), _spec(9, 7, resize=resize))[:, :, 0], noise)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=st.integers(1, 24), width=st.integers(1, 24), channels=st.sampled_from([1, 3]))
def test_what_is_encoded_as_png_is_decoded_unchanged(
    data: st.DataObject, height: int, width: int, channels: Literal[1, 3]
) -> None:
    image = data.draw(arrays(np.uint8, (height, width, channels)))
    np.testing.assert_array_equal(decode(encode_png(image), _spec(height, width, channels)), image)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBP", b"BM", b"GIF89a"]),
    st.binary(max_size=200),
)
def test_no_bytes_whatever_raise_anything_but_an_image_error(magic: bytes, rest: bytes) -> None:
    assert _outcome(magic + rest, _spec()) in ("image", "refused")
