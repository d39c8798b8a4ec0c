"""What all figures share: colours, an empty figure, short labels, and the PNG.

Matplotlib's object API only: no pyplot, so no global state and nothing that must be closed.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image

if TYPE_CHECKING:
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


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG, 110 dots an inch."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Class names in a script that the bundled font lacks become boxes; the tables hold them whole.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=110, facecolor="white")
    return buffer.getvalue()


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
