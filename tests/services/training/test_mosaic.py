from __future__ import annotations

import numpy as np
import pytest

from services.training import mosaic


def test_a_row_holds_an_image_and_its_channels() -> None:
    images = np.full((2, 6, 6, 3), 200, dtype=np.uint8)
    picture = mosaic.activations(images, np.zeros((2, 5, 3, 3), dtype=np.float32), side=20)
    assert picture.shape == (2 * 20 + mosaic.GAP, 6 * (20 + mosaic.GAP) - mosaic.GAP, 3)
    assert (picture[:20, :20] == 200).all()


@pytest.mark.parametrize("size", [(31, 18), (34, 21), (1, 1), (1, 18), (100, 7)])
def test_maps_that_are_not_of_the_images_proportions_take_the_tile_of_the_image(size: tuple[int, int]) -> None:
    images = np.full((2, 33, 20, 1), 200, dtype=np.uint8)
    maps = np.random.default_rng(0).random((2, 3, *size), dtype=np.float32)
    picture = mosaic.activations(images, maps, side=66)
    assert picture.shape == (2 * 66 + mosaic.GAP, 4 * (40 + mosaic.GAP) - mosaic.GAP, 3)
    # no white but the gaps: each map fills its tile
    assert (picture[:66, 42:82] != 255).any(axis=2).all()


def test_a_dead_channel_is_dark_and_the_strongest_place_of_a_channel_is_bright() -> None:
    maps = np.zeros((1, 2, 2, 2), dtype=np.float32)
    maps[0, 1, 0, 0] = 3
    picture = mosaic.activations(np.zeros((1, 2, 2, 1), dtype=np.uint8), maps, side=2)
    dead, alive = picture[:, 4:6], picture[:, 8:10]
    np.testing.assert_array_equal(dead, np.broadcast_to(mosaic.colour(np.zeros((1, 1)), "viridis"), dead.shape))
    np.testing.assert_array_equal(alive[:1, :1], mosaic.colour(np.ones((1, 1)), "viridis"))


def test_channels_are_laid_out_in_rows_and_the_last_may_be_short() -> None:
    picture = mosaic.channels(np.ones((10, 3, 3), dtype=np.float32), columns=4, side=10)
    assert picture.shape == (3 * 12 - 2, 4 * 12 - 2, 3)
    assert (picture[-10:, -10:] == 255).all()


def test_heat_covers_the_image_and_none_leaves_it_dimmed() -> None:
    image = np.full((4, 4, 1), 100, dtype=np.uint8)
    heat = np.zeros((4, 4), dtype=np.float32)
    assert (mosaic.overlay(image, heat, 8) == 75).all()
    hot = mosaic.overlay(image, heat + 1, 8)
    np.testing.assert_array_equal(hot[:1, :1], mosaic.colour(np.ones((1, 1)), "inferno"))


@pytest.mark.parametrize(("channels", "size"), [(1, 3), (3, 5), (1, 1)])
def test_filters_of_any_kind_are_drawn(channels: int, size: int) -> None:
    weights = np.random.default_rng(0).normal(size=(9, channels, size, size)).astype(np.float32)
    weights[0] = 0
    assert mosaic.filters(weights, side=10).shape == (2 * 12 - 2, 8 * 12 - 2, 3)


def test_a_filter_without_weight_is_white_in_gray_and_gray_in_colour() -> None:
    assert (mosaic.filters(np.zeros((1, 1, 3, 3), dtype=np.float32)) > 240).all()
    assert (mosaic.filters(np.zeros((1, 3, 3, 3), dtype=np.float32)) == 128).all()


@pytest.mark.parametrize("shape", [(8, 8), (300, 200), (3, 500)])
def test_the_longer_side_of_a_tile_is_the_one_that_is_asked_for(shape: tuple[int, int]) -> None:
    assert max(mosaic.tile(np.zeros((*shape, 3), dtype=np.uint8), 50).shape) == 50
