"""What all figures share: colours, an empty figure, short labels, and the PNG.

Matplotlib's object API only: no pyplot, so no global state and nothing that must be closed.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

from services.training.allocator import give_back

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

# Okabe and Ito's palette: its colours stay apart for colour-blind readers and in print.
BLUE: Final = "#0072B2"
VERMILION: Final = "#D55E00"
PALETTE: Final = (
    BLUE,
    VERMILION,
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C564B",
    "#7F3C8D",
    "#B8A300",
    "#444444",
)
INK: Final = "#333333"
GRID: Final = "#E4E4E4"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    return figure


def pictures(rows: Sequence[Sequence[tuple[NDArray[np.uint8], str]]], heading: str, *, cell: float = 1.35) -> Figure:
    """Small pictures in rows, each under its caption, below a heading.

    One set of axes holds all of them: with one for each of 24, matplotlib took five times as long.

    Args:
        rows: Images uint8 (height, width, 1 or 3) with their captions, of one line or two.
        heading: Of the figure.
        cell: Inches from one picture to the next in a row.
    """
    side = cell - 0.15
    captions = [text for row in rows for _, text in row if text]
    above = 0.14 * max((text.count("\n") + 1 for text in captions), default=0) + 0.1
    width = max(cell * max(map(len, rows), default=0) + 0.15, 5.4)
    height = 0.45 + max(len(rows), 1) * (above + side)
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    figure.suptitle(heading, color=INK, fontsize=12, y=1 - 0.12 / height, va="top")
    axes = figure.add_axes((0, 0, 1, 1))  # in inches from the upper left corner
    axes.set_axis_off()
    for number, row in enumerate(rows):
        top = 0.35 + number * (above + side) + above
        for place, (image, caption) in enumerate(row):
            left = 0.15 + place * cell
            tall, wide = (side * length / max(image.shape[:2]) for length in image.shape[:2])
            x, y = left + (side - wide) / 2, top + (side - tall) / 2
            pixels = image[..., 0] if image.shape[2] == 1 else image
            axes.imshow(
                pixels,
                cmap="gray",
                vmin=0,
                vmax=255,
                interpolation="nearest",
                aspect="auto",
                extent=(x, x + wide, y + tall, y),
            )
            if caption:
                axes.text(left + side / 2, top - 0.04, caption, ha="center", va="bottom", fontsize=8, color=INK)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG, 110 dots an inch."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names in a script that the bundled font lacks become boxes; the tables hold them whole.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


def release(figure: Figure) -> None:
    """Empty a figure that is not needed any more, and give its memory back.

    Its parts refer to each other in circles, so that Python frees them much later; seven figures held 25 MB until then.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    figure.clear()
    FigureCanvasBase(figure)  # in place of the one with the pixels
    give_back()


def to_pixels(png: bytes) -> NDArray[np.uint8]:
    """What a PNG of ours shows: uint8, (height, width, 3)."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)


def plain(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, axis names and a light grid, without a box around them."""
    axes.set_title(title, color=INK, fontsize=12, loc="left")
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(visible=True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)


def percent(share: float) -> str:
    """99.96% must not be written 100%."""
    if 0.995 <= share < 1:
        return f"{min(share * 100, 99.9):.1f}%"
    return f"{share:.0%}" if share >= 0.01 or share == 0 else "<1%"


def short(label: str, most: int = 14) -> str:
    """Cut in the middle: names often differ at their ends only."""
    if len(label) > most:
        end = most // 3
        label = f"{label[: most - end - 1]}…{label[-end:]}"
    return label.replace("$", r"\$")  # two of them would start a formula
