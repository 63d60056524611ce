"""Scales of figures: the colour scale of a channel, and ticks and labels of an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jitkit.plots.sheet import GREY, printable, shorten
from jitkit.plots.views import Ruler, format_degrees
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ScaleEnds = tuple[float, float]

ROBUST = (0.5, 99.5)  # percentiles of real values at the ends of the colour scale
SIGNED = 0.2  # ratio of the smaller to the larger side of zero for a diverging scale
SKEWED = 10.0  # ratio of the highest to the median positive value for a logarithmic scale
MAX_TICKS = 8
DECADES = 3  # of a logarithmic scale
RANGE_VALUES = 100_000  # values per item for the range
LAND = "#c9c9c9"
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 20, 30, 45, 60, 90)  # degrees
ROOM = {"x": 0.56, "y": 0.4}  # inches for a tick label
LETTER, OVERHANG = 0.033, 0.04  # inches of half a letter, and of labels beyond a panel


class ColourScale:
    """The colour scale of a channel: one robust range for both sides.

    Signed values get a diverging scale about zero. Values that are never negative and mostly near
    zero, such as rain, get a logarithmic scale, white below. Missing cells are grey.
    """

    def __init__(self, sides: Sequence[Sequence[Array]]) -> None:
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LogNorm, Normalize

        nonempty = [side for side in map(_known, sides) if side.size]
        self.empty = not nonempty
        known = nonempty or [np.zeros(1)]
        low, high = np.percentile(known[0], ROBUST).tolist()
        positive = known[0][known[0] > 0]
        smaller, larger = sorted((-low, high))
        name, self.log = "viridis", False
        if smaller > SIGNED * larger:
            name, low, high = "RdBu_r", -larger, larger
        elif low >= 0 and positive.size and high > SKEWED * np.median(positive):
            name, low, self.log = "YlGnBu", high * 10.0**-DECADES, True
        if low >= high:
            margin = max(abs(low), 1.0) * 1e-3
            low, high = low - margin, high + margin
        self._ends = low, high
        colours = colormaps[name].with_extremes(bad=LAND, under="white" if self.log else None)
        norm = LogNorm(low, high) if self.log else Normalize(low, high)
        self._scale = ScalarMappable(norm, colours)
        below, above = min(s.min() for s in known) < low, max(s.max() for s in known) > high
        self._extend = ("both" if above else "min") if below else "max" if above else "neither"

    def to_rgba(self, pixels: Array) -> Array:
        """RGBA bytes (H, W, 4) of values (H, W)."""
        low, high = self._ends
        far = low / 2 if self.log else 2 * low - high  # the logarithm of zero is undefined
        pixels = np.clip(pixels, far, 2 * high - low)  # far values would overflow
        return np.asarray(self._scale.to_rgba(np.ma.masked_invalid(pixels), bytes=True))

    def bar(self, axes: Axes, unit: str) -> None:
        """Draw the colour bar with its unit; nothing where all values are missing."""
        from matplotlib.ticker import FuncFormatter, NullFormatter

        if self.empty:
            return axes.set_axis_off()
        figure: Any = axes.figure
        form = FuncFormatter(lambda at, _: format_number(at))
        bar = figure.colorbar(
            self._scale, cax=axes, extend=self._extend, extendfrac=0.04, format=form
        )
        bar.outline.set_linewidth(0.6)
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylabel(printable(unit), parse_math=False)
        return None


def _known(items: Sequence[Array]) -> Array:
    """Observed values of items, a subset of many, float64."""
    some = [item.ravel()[:: max(1, item.size // RANGE_VALUES)] for item in items]
    values = np.concatenate(some).astype(np.float64)
    return values[np.isfinite(values)]


def ticks(
    axes: Axes, which: Literal["x", "y"], along: Ruler, ends: ScaleEnds, labelled: bool, room: float
) -> None:
    """Ticks along an axis, as many as fit.

    Args:
        labelled: whether tick labels and the axis label are drawn.
        room: inches between panels, for the label.
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator

    box = axes.get_position()
    figure: Any = axes.figure
    width, height = figure.get_size_inches()
    inches = box.width * width if which == "x" else box.height * height
    marks = _marks(along, ends, int(np.clip(inches / ROOM[which], 2, MAX_TICKS)))
    inner = [mark for mark in marks if _inside(mark, ends, inches, which)]
    kept = inner if len(inner) > 1 else marks
    side: Any = axes.xaxis if which == "x" else axes.yaxis
    side.set_major_locator(FixedLocator([at for at, _ in marks]))
    side.set_major_formatter(FixedFormatter([m[1] if m in kept else "" for m in marks]))
    side.set_tick_params(labelleft=labelled, labelbottom=labelled)
    if labelled:
        label = printable(shorten(along.label, max(8, int(room / 2 / LETTER))))
        side.set_label_text(label, size=8, color=GREY, parse_math=False)


def _inside(mark: tuple[float, str], ends: ScaleEnds, inches: float, which: str) -> bool:
    """Whether a tick label does not overlap that of the next panel."""
    at, text = mark
    half = len(text) * LETTER if which == "x" else 0.06
    gap = min(at - ends[0], ends[1] - at) / (ends[1] - ends[0]) * inches
    return gap >= half - OVERHANG


def _marks(along: Ruler, ends: ScaleEnds, room: int) -> list[tuple[float, str]]:
    """Positions of ticks, and their text."""
    from matplotlib.ticker import MaxNLocator

    if along.ticks is not None:
        step = max(1, -(-len(along.ticks) // (room + 1)))
        return [(at, printable(text)) for at, text in along.ticks[::step]]
    if along.compass:
        every = next((s for s in STEPS if (ends[1] - ends[0]) / s <= room), STEPS[-1])
        first, last = np.ceil(ends[0] / every - 1e-6), np.floor(ends[1] / every + 1e-6)
        degrees = (np.arange(first, last + 1) * every).tolist()
        return [(at, format_degrees(at, along.compass)) for at in degrees]
    values = list(MaxNLocator(room, steps=[1, 2, 2.5, 5, 10]).tick_values(*ends))
    return [(at, format_number(at)) for at in values if ends[0] <= at <= ends[1]]


def format_number(at: float, digits: int = 10) -> str:
    """A number as printed.

    >>> format_number(-0.30000000000000004)
    '−0.3'
    """
    return f"{at:.{digits}g}".replace("-", "−")
