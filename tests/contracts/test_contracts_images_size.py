"""The only decode path: pictures of any size become those of the spec."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from contracts.images import decode, encode_png
from tests.contracts.pictures import encoded, gray, spec_of


def test_stretch_ignores_the_aspect_ratio() -> None:
    left_right = np.array([[0, 0, 200, 200]] * 2, dtype=np.uint8)
    array = decode(encoded(gray(left_right), "PNG"), spec_of(8, 2, resize="stretch"))
    # Halving with antialiased bilinear weighs (1, 3, 3, 1) and cuts at the border: (1+3+3)/7 of the pixels inside.
    np.testing.assert_array_equal(array[:, :, 0], [[round(200 / 7), round(200 * 6 / 7)]] * 8)


def test_a_larger_size_is_interpolated_bilinearly() -> None:
    array = decode(encoded(gray(np.array([[0, 100]], dtype=np.uint8)), "PNG"), spec_of(1, 4))
    np.testing.assert_array_equal(array[0, :, 0], [0, 25, 75, 100])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), [(4, 8), (8, 4)])
def test_pad_keeps_the_aspect_ratio_and_fills_with_the_background(
    height: int, width: int, channels: Literal[1, 3]
) -> None:
    data = encoded(gray(np.full((height, width), 200, dtype=np.uint8)), "PNG")
    array = decode(data, spec_of(8, 8, channels, resize="pad", background=7))
    expected = np.full((8, 8, channels), 7, dtype=np.uint8)
    rows, columns = slice((8 - height) // 2, (8 + height) // 2), slice((8 - width) // 2, (8 + width) // 2)
    expected[rows, columns] = 200
    np.testing.assert_array_equal(array, expected)


def test_crop_keeps_the_aspect_ratio_and_cuts_the_middle() -> None:
    stripes = np.repeat(np.array([[10, 20, 30, 40]], dtype=np.uint8), 2, axis=1).repeat(4, axis=0)  # 4 rows, 8 columns
    array = decode(encoded(gray(stripes), "PNG"), spec_of(4, 4, resize="crop"))
    np.testing.assert_array_equal(array[:, :, 0], [[20, 20, 30, 30]] * 4)


@pytest.mark.parametrize("resize", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1), (17, 5)])
def test_every_size_can_be_brought_to_the_specs(size: tuple[int, int], resize: str) -> None:
    data = encoded(gray(np.full(size, 90, dtype=np.uint8)), "PNG")
    array = decode(data, spec_of(8, 8, resize=resize))
    assert array.shape == (8, 8, 1)
    assert array.max() == 90


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
    for resize in ("stretch", "pad", "crop"):
        np.testing.assert_array_equal(
            decode(encode_png(noise[..., None]), spec_of(9, 7, resize=resize))[:, :, 0], noise
        )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=st.integers(1, 24), width=st.integers(1, 24), channels=st.sampled_from([1, 3]))
def test_what_is_encoded_as_png_is_decoded_unchanged(
    data: st.DataObject, height: int, width: int, channels: Literal[1, 3]
) -> None:
    image = data.draw(arrays(np.uint8, (height, width, channels)))
    np.testing.assert_array_equal(decode(encode_png(image), spec_of(height, width, channels)), image)
