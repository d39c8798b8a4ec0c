"""The only decode path: every format and mode in, one tensor out."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image

from contracts.images import decode
from tests.contracts.pictures import PATTERN, encoded, gray, rgb, spec_of


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_a_gray_image_of_each_lossless_format_comes_back_unchanged(kind: str) -> None:
    array = decode(encoded(gray(), kind), spec_of())
    assert array.dtype == np.uint8
    assert array.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(array[:, :, 0], PATTERN)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_a_colour_image_of_each_lossless_format_comes_back_unchanged(kind: str, options: dict[str, Any]) -> None:
    array = decode(encoded(Image.fromarray(rgb()), kind, **options), spec_of(channels=3))
    np.testing.assert_array_equal(array, rgb())


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_a_smooth_image_of_each_lossy_format_comes_back_nearly_unchanged(kind: str, options: dict[str, Any]) -> None:
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)[None, :].repeat(32, axis=0)
    array = decode(encoded(gray(ramp), kind, **options), spec_of(32, 32))
    assert np.abs(array[:, :, 0].astype(int) - ramp).max() <= 4


def test_gray_becomes_three_equal_channels() -> None:
    array = decode(encoded(gray(), "PNG"), spec_of(channels=3))
    np.testing.assert_array_equal(array, PATTERN[..., None].repeat(3, axis=-1))


def test_colour_becomes_itu_r_601_luma() -> None:
    array = decode(encoded(Image.fromarray(rgb()), "PNG"), spec_of())
    luma = rgb() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(array[:, :, 0] - luma).max() <= 0.51


def test_an_unused_alpha_channel_changes_nothing() -> None:
    opaque = np.dstack([rgb(), np.full_like(PATTERN, 255)])
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(opaque), "PNG"), spec_of(channels=3)), rgb())


@pytest.mark.parametrize("background", [0, 255])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_on_the_background(background: int, kind: str) -> None:
    pixels = np.array([[[200, 100, 50, 0], [200, 100, 50, 255], [200, 100, 50, 128]]], dtype=np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    array = decode(encoded(Image.fromarray(pixels), kind, **options), spec_of(1, 3, 3, background=background))
    half = np.array([200, 100, 50]) * (128 / 255) + background * (127 / 255)
    np.testing.assert_array_equal(array[0, 0], [background] * 3)
    np.testing.assert_array_equal(array[0, 1], [200, 100, 50])
    assert np.abs(array[0, 2] - half).max() <= 1


def test_gray_with_alpha_is_laid_on_the_background() -> None:
    image = Image.merge("LA", [gray(), Image.fromarray(np.where(PATTERN > 100, 255, 0).astype(np.uint8))])
    array = decode(encoded(image, "PNG"), spec_of(background=7))
    np.testing.assert_array_equal(array[:, :, 0], np.where(PATTERN > 100, PATTERN, 7))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_is_the_background(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255] + [0] * 759)
    array = decode(encoded(image, kind, transparency=1), spec_of(2, 2, 3, background=9))
    np.testing.assert_array_equal(array, [[[255, 0, 0], [9, 9, 9]], [[0, 0, 255], [9, 9, 9]]])


def test_a_palette_becomes_its_colours() -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60] + [0] * 762)
    np.testing.assert_array_equal(decode(encoded(image, "PNG"), spec_of(1, 2, 3)), [[[10, 20, 30], [40, 50, 60]]])


def test_one_bit_becomes_black_and_white() -> None:
    array = decode(encoded(gray().point(lambda value: 255 * (value > 100)).convert("1"), "PNG"), spec_of())
    np.testing.assert_array_equal(array[:, :, 0], np.where(PATTERN > 100, 255, 0))


def test_sixteen_bits_are_rescaled_and_not_clipped() -> None:
    samples = np.array([[0, 255, 256, 32768, 65535, 257 * 100]], dtype=np.uint16)
    array = decode(encoded(Image.fromarray(samples), "PNG"), spec_of(1, 6))
    np.testing.assert_array_equal(array[0, :, 0], [0, 1, 1, 128, 255, 100])


def test_every_sixteen_bit_sample_is_rounded_to_the_nearest_eight_bit_one_also_across_strips() -> None:
    samples = np.tile(np.arange(65536, dtype=np.uint16).reshape(256, 256), (3, 1))[:700]
    array = decode(encoded(Image.fromarray(samples), "PNG"), spec_of(700, 256))
    np.testing.assert_array_equal(array[:, :, 0], np.rint(samples / 257).astype(np.uint8))


def test_a_large_sixteen_bit_image_takes_little_more_memory_than_its_samples() -> None:
    data = encoded(Image.fromarray(np.zeros((3000, 3000), dtype=np.uint16)), "PNG")
    tracemalloc.start()
    decode(data, spec_of(8, 8))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9_000_000 * 5  # numpy's part: eight bytes a sample before strips, and as much again in floats


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    array = decode(encoded(cmyk, "JPEG", quality=95), spec_of(16, 16, 3))
    assert np.abs(array.astype(int) - [255, 0, 0]).max() <= 4
