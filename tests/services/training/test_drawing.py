from __future__ import annotations

import numpy as np
import pytest

from services.training.drawing import pictures, to_pixels, to_png


def test_pictures_stand_in_their_places_upright_and_in_their_shape() -> None:
    picture = np.zeros((2, 1, 3), dtype=np.uint8)
    picture[0], picture[1] = (255, 0, 0), (0, 0, 255)  # red above blue, twice as high as wide
    figure = pictures([[(picture, "one"), (picture, "two")], [(picture, "three")]], "a heading")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["one", "two", "three"]
    assert figure.get_suptitle() == "a heading"
    pixels = to_pixels(to_png(figure)).astype(int)
    red, blue = (pixels[..., at] - pixels[..., 2 - at] > 200 for at in (0, 2))
    for found in (red, blue):
        rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
        assert (np.diff(rows) > 1).sum() == 1  # two rows of pictures, the first of which holds two
        assert (np.diff(columns) > 1).sum() == 1
        assert found.sum() == pytest.approx(3 * 66 * 66, rel=0.05)  # 0.6 inches a side, 110 dots an inch
    assert np.flatnonzero(red.any(axis=1))[0] < np.flatnonzero(blue.any(axis=1))[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_no_picture_at_all_is_a_figure_with_its_heading(channels: int) -> None:
    assert pictures([], "nothing").get_suptitle() == "nothing"
    single = np.zeros((1, 1, channels), dtype=np.uint8)
    assert to_png(pictures([[(single, "")]], "one")).startswith(b"\x89PNG")
