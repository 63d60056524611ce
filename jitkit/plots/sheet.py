"""Figure layout for `panels`: positions of panels, headings and colour bars, and plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.utils.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

PanelBlock = tuple[str, list[Array], str]  # heading, items (C, X1..Xn), colour of the heading

DPI = 120
WIDTH = 13.0  # inches of the figure, at most
LEFT, BAR, TOP, FOOT, LABELS = 0.95, 1.1, 0.5, 0.3, 0.2  # inches around the panels
BETWEEN, GAP_X, GAP_Y, TITLED = (
    0.45,
    0.1,
    0.12,
    0.2,
)  # inches between sides, between panels, for titles
OWN_AXES = 0.6  # extra inches between panels with their own ticks
HIGHEST, LOWER, MANY = 3.0, 1.9, 4  # inches of a panel, and for more than MANY rows
LETTER = 0.085  # inches per bold letter
GREY = "#6b6b6b"


class Sheet:
    """A figure of panels: for each channel one block per side, and a colour bar."""

    def __init__(
        self,
        blocks: Sequence[PanelBlock],
        num_rows: int,
        columns: int,
        lines: int,
        aspect: float,
        *,
        titles: Sequence[str] = (),
        labelled: bool = False,
        own_ticks: bool = False,
        bar: float = BAR,
    ) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        extra = OWN_AXES if own_ticks else 0
        self.gap, self.between, self.columns = GAP_X + extra, BETWEEN + extra, columns
        sides = len(blocks)
        available = (WIDTH - LEFT - bar - self.between * (sides - 1)) / sides
        width = (available - self.gap * (columns - 1)) / columns
        height = min(LOWER if lines * num_rows > MANY else HIGHEST, width * aspect)
        self.box = (height / aspect, height)
        self.side = columns * self.box[0] + self.gap * (columns - 1)
        self.top = TOP + (TITLED if titles else 0)
        self.row = lines * height + (lines - 1) * GAP_Y
        foot = FOOT + (LABELS if labelled else 0)
        self.height = self.top + num_rows * self.row + (num_rows - 1) * 2 * GAP_Y + foot
        self.right = LEFT + sides * self.side + self.between * (sides - 1)
        self.width = self.right + bar
        self.figure = Figure(figsize=(self.width, self.height), dpi=DPI, facecolor="white")
        FigureCanvasAgg(self.figure)
        self._head(blocks, titles)

    def left(self, side: int) -> float:
        """Inches from the left of the figure to a side."""
        return LEFT + side * (self.side + self.between)

    def panel(self, row: int, side: int, i: int, aspect: float) -> Axes:
        """Panel ``i`` of a block, as large as its aspect allows, aligned at the top."""
        width, height = self.box
        x = self.left(side) + (i % self.columns) * (width + self.gap)
        y = self.down(row) + (i // self.columns) * (height + GAP_Y)
        w, h = min(width, height / aspect), min(height, width * aspect)
        return self._axes(x + (width - w) / 2, y, w, h)

    def bar(self, row: int) -> Axes:
        """Axes for the colour bar of a channel."""
        height = min(self.row, 3.5)
        return self._axes(self.right + 0.12, self.down(row) + (self.row - height) / 2, 0.13, height)

    def down(self, row: int) -> float:
        """Inches from the top of the figure to a channel's block."""
        return self.top + row * (self.row + 2 * GAP_Y)

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text at inches from the left and from the top."""
        position = (x / self.width, 1 - y / self.height)
        self.figure.text(*position, printable(text), parse_math=False, **style)

    def note(self, text: str) -> None:
        """A note on the whole figure, above its right end."""
        self.text(self.right, TOP - 0.19, text, color=GREY, size=9, ha="right", va="bottom")

    def name(self, row: int, text: str) -> None:
        """Channel name, vertical beside its block."""
        y = self.down(row) + self.row / 2
        style = {"rotation": 90, "ha": "center", "va": "center", "size": 10, "weight": "bold"}
        self.text(0.17, y, shorten(text, max(6, int(self.row / LETTER))), **style)

    def _head(self, blocks: Sequence[PanelBlock], titles: Sequence[str]) -> None:
        """Names of the sides, and titles of the panels."""
        from matplotlib.lines import Line2D

        for side, (name, _, colour) in enumerate(blocks):
            x = self.left(side)
            self.text(x, TOP - 0.19, name, color=colour, size=13, weight="bold", va="bottom")
            ends = [x / self.width, (x + self.side) / self.width]
            level = [1 - (TOP - 0.14) / self.height] * 2
            self.figure.add_artist(Line2D(ends, level, color=colour, linewidth=1.2))
            for i, title in enumerate(titles):
                middle = x + i * (self.box[0] + self.gap) + self.box[0] / 2
                text = shorten(title, int((self.box[0] + self.gap) / 0.07))
                style = {"ha": "center", "va": "bottom", "size": 8, "color": GREY}
                self.text(middle, self.top - 0.03, text, **style)

    def _axes(self, x: float, y: float, w: float, h: float) -> Axes:
        bottom = 1 - (y + h) / self.height
        return self.figure.add_axes((x / self.width, bottom, w / self.width, h / self.height))

    def image(self) -> Image:
        """The figure as an RGB image."""
        from PIL import Image

        canvas: Any = self.figure.canvas
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy(), "RGB")


def printable(text: str) -> str:
    """Text on one line, with characters that the font lacks replaced by ``?``."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    known = (c if c.isprintable() and font.get_char_index(ord(c)) else "?" for c in text)
    return "".join(" " if c.isspace() else k for c, k in zip(text, known, strict=True))


def shorten(text: str, most: int) -> str:
    """A name of at most ``most`` letters, its middle left out.

    >>> shorten("air_pressure_at_sea_level", 13)
    'air_pr…_level'
    """
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[len(text) - half :]}"
