"""Pictures of sampled arrays beside real ones: maps, lines and slices, a row for each channel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError, JitkitError, listed
from jitkit.metrics.fields.summaries import spaced
from jitkit.plots.grids import views
from jitkit.plots.scales import Colours, number, ticks
from jitkit.plots.sheet import DPI, Sheet, SheetBlock
from jitkit.plots.views import (
    FieldView,
    Lines,
    counted,
    degrees,
    labelled,
    pretty,
    ruler,
    shrunk,
)
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

ASPECTS = (0.3, 1.6)  # height over width of a panel, which else is true to the data
FLAT = 0.42  # height over width of a panel with a line
REAL, SAMPLED = "#1b4965", "#b5462f"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.edgecolor": "#404040",
}
IN_TIME = re.compile(r"(.*time.*|t|step|frame|window|hour|day|month|year|lead)", re.I)


@dataclass(frozen=True)
class Plane:
    """A plane through an array: which indices are fixed, which two axes remain, its title."""

    fixed: tuple[int | slice, ...]
    axes: tuple[int, int]
    title: str = ""

    def of(self, item: Array) -> Array:
        """The plane of a channel (X1..Xn)."""
        return item[self.fixed]


def panels(
    sampled: Sequence[Array],
    real: Sequence[Array],
    *,
    channels: Sequence[str],
    axes: Sequence[tuple[str, str]],
    units: Mapping[str, str] | None = None,
    coords: Mapping[str, Array] | None = None,
    coord_units: Mapping[str, str] | None = None,
    most_channels: int = 4,
    most_items: int = 4,
) -> Image:
    """Real items on the left, sampled ones on the right, in one range of colours a channel.

    One axis is drawn as a line, two as a map. Of three, maps (last two axes are latitude and
    longitude, or the first is time) show the first, middle and last step of the first axis, other
    volumes their three middle slices; of four, the middle of the second axis is shown at the first,
    middle and last step of the first. Missing cells are grey, with a coast where they are the same
    in every item.

    Args:
        sampled: arrays (C, X1..Xn), physical units, NaN missing.
        real: the same of real items; may be empty, and then samples stand alone.
        channels: C names.
        axes: name and kind (``"line"`` or ``"circle"``) of X1..Xn.
        units: of channels, by name.
        coords: coordinates by axis name, each (Xi,); latitude and longitude may instead be 2-D,
            over the last two axes, under any name whose unit or name says which they are.
        coord_units: CF units of coordinates (``degrees_north``, ``m``), by the names of ``coords``.
        most_channels: rows at most; of more channels some are drawn, and the title says so.
        most_items: items a side at most; of volumes and films two.

    Raises:
        DataError: no items, or arrays of another shape than ``channels`` and ``axes`` say.
        JitkitError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as missing:
        raise JitkitError(
            "pictures of arrays need matplotlib, which is not installed: pip install matplotlib"
        ) from missing
    shape = _shape([*real, *sampled], channels, axes)
    most = most_items if len(axes) < 3 else min(2, most_items)
    sides = [("real", real, REAL), ("sampled", sampled, SAMPLED)]
    blocks: list[SheetBlock] = [
        (name, [np.asarray(item) for item in items[:most]], colour)
        for name, items, colour in sides
        if len(items)
    ]
    about = _About(channels, units or {}, axes, shape, coords or {}, coord_units or {})
    shown = spaced(len(channels), most_channels)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the user's own style is
        matplotlib.rcParams.update(STYLE)
        draw = _lines if len(axes) == 1 else _planes
        sheet = draw(blocks, shown, about)
        few = f"{len(shown)} of {len(channels)} channels" if len(shown) < len(channels) else ""
        sheet.note(", ".join(filter(None, (few, about.where))))
        return sheet.image()


class _About:
    """What a picture says of channels and axes besides their values."""

    def __init__(
        self,
        channels: Sequence[str],
        units: Mapping[str, str],
        axes: Sequence[tuple[str, str]],
        shape: tuple[int, ...],
        coords: Mapping[str, Array],
        coord_units: Mapping[str, str],
    ) -> None:
        self.channels, self.axes, self.grid = channels, axes, shape[1:]
        self.units = {name: pretty(units.get(name, "")) for name in channels}
        self.rulers = [
            ruler(name, size, coords.get(name), coord_units.get(name, ""))
            for (name, _), size in zip(axes, self.grid, strict=True)
        ]
        self.views = views(axes, self.grid, coords, coord_units)
        self.where = ""

    def planes(self) -> list[Plane]:
        """The planes that are drawn of every item."""
        n = len(self.axes)
        if n == 2:
            return [Plane((), (0, 1))]
        last = self.views[n - 2, n - 1]
        film = bool(IN_TIME.fullmatch(self.axes[0][0]))
        if n == 3 and not film and not (last.x.compass and last.y.compass):
            return [self._middle(axis) for axis in range(3)]
        rest = tuple(size // 2 for size in self.grid[1:-2])
        if rest:
            self.where = "at " + self._place(1, rest[0])
        steps = spaced(self.grid[0], 3)
        return [Plane((i, *rest), (n - 2, n - 1), self._place(0, i)) for i in steps]

    def _middle(self, axis: int) -> Plane:
        i = self.grid[axis] // 2
        fixed = tuple(i if a == axis else slice(None) for a in range(3))
        first, second = (a for a in range(3) if a != axis)
        return Plane(fixed, (first, second), self._place(axis, i))

    def _place(self, axis: int, i: int) -> str:
        """Where index ``i`` of an axis lies, in words."""
        name, along = self.axes[axis][0], self.rulers[axis]
        if along.values is None:
            return f"{name} {i + 1} of {self.grid[axis]}"
        if along.compass:
            return degrees(float(along.values[i]), along.compass)
        unit = pretty(along.unit)
        return f"{name} = {number(along.values[i], 4)}{'' if unit == '°' else ' '}{unit}".rstrip()


def _planes(blocks: Sequence[SheetBlock], shown: Sequence[int], about: _About) -> Sheet:
    """Maps and slices, in colours."""
    planes = about.planes()
    seen = [about.views[plane.axes] for plane in planes]
    aspects = [float(np.clip(view.aspect, *ASPECTS)) for view in seen]
    most = max(len(items) for _, items, _ in blocks)
    columns = len(planes) if len(planes) > 1 else _columns(most, aspects[0])
    alike = len({plane.axes for plane in planes}) == 1  # else each has axes of its own
    sheet = Sheet(
        blocks,
        len(shown),
        columns,
        lines=-(-most * len(planes) // columns),
        aspect=max(aspects),
        titles=[plane.title for plane in planes] if len(planes) > 1 else [],
        labelled=any(view.x.label for view in seen),
        roomy=not alike,
    )
    for row, c in enumerate(shown):
        colours = Colours([[item[c] for item in items] for _, items, _ in blocks])
        colours.bar(sheet.bar(row), about.units[about.channels[c]])
        sheet.name(row, about.channels[c])
        every = [item[c] for _, items, _ in blocks for item in items]
        coasts = [
            view.coast(_always(every, plane)) for plane, view in zip(planes, seen, strict=True)
        ]
        for side, (_, items, _) in enumerate(blocks):
            last = row == len(shown) - 1
            for at in range(len(items) * len(planes)):
                item, i = items[at // len(planes)][c], at % len(planes)
                axes = sheet.panel(row, side, at, aspects[i])
                _paint(axes, planes[i].of(item), seen[i], colours, coasts[i], sheet.box)
                bottom = last and at + columns >= len(items) * len(planes)
                first = at % columns == 0 and side == 0 or not alike
                _dress(axes, seen[i], bottom, first, sheet.box)
    return sheet


def _columns(num: int, aspect: float) -> int:
    """Panels beside each other on a side, so that a panel is large enough to read."""
    if num <= 4 or aspect < 0.4:
        return min(num, 2)
    return min(4, -(-num // 2))


def _always(items: Sequence[Array], plane: Plane) -> Array:
    """Cells of a plane that are missing in every item; none where items differ."""
    gone = np.stack([np.logical_not(np.isfinite(plane.of(item))) for item in items])
    return gone[0] if (gone == gone[0]).all() else np.zeros_like(gone[0])


def _paint(
    axes: Axes,
    plane: Array,
    view: FieldView,
    colours: Colours,
    coast: Lines,
    inches: tuple[float, float],
) -> None:
    from matplotlib.collections import LineCollection

    wide, high = (2 * DPI * size for size in inches)
    pixels, outside = shrunk(view.of(plane), view.index < 0, high, wide)
    rgba = colours.of(pixels)
    rgba[outside] = 0  # one sees through
    axes.imshow(rgba, origin="lower", extent=view.extent, aspect="auto")
    for lines, colour in ((view.lines, "#909090"), (coast, "#202020")):
        ink = LineCollection(lines, colors=colour, linewidths=0.5)
        axes.add_collection(ink, autolim=False)


def _dress(
    axes: Axes, view: FieldView, bottom: bool, first: bool, inches: tuple[float, float]
) -> None:
    """Ticks and labels, on outer panels alone."""
    left, right, low, high = view.extent
    axes.set_xlim(left, right)
    axes.set_ylim((high, low) if view.y.down else (low, high))
    ticks(axes, "x", view.x, (left, right), bottom, inches[0])
    ticks(axes, "y", view.y, (low, high), first, inches[1])
    for x, y, text in view.marks if first else ():
        box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.8}
        axes.text(x, y, text, size=6, ha="center", va="center", color="#202020", bbox=box)


def _lines(blocks: Sequence[SheetBlock], shown: Sequence[int], about: _About) -> Sheet:
    """Arrays of one axis as lines, one item a panel, on one range a channel."""
    along = about.rulers[0]
    columns = min(2, max(len(items) for _, items, _ in blocks))
    lines = max(-(-len(items) // columns) for _, items, _ in blocks)
    sheet = Sheet(blocks, len(shown), columns, lines, FLAT, labelled=bool(along.label), bar=0.2)
    for row, c in enumerate(shown):
        name = about.channels[c]
        sheet.name(row, labelled(name, about.units[name]))
        limits = _limits([[item[c] for item in items] for _, items, _ in blocks])
        for side, (_, items, colour) in enumerate(blocks):
            for at, item in enumerate(items):
                axes = sheet.panel(row, side, at, FLAT)
                known = np.where(np.isfinite(item[c]), item[c], np.nan)
                axes.plot(along.at, known[along.order], color=colour, linewidth=0.9)
                alone = _alone(known[along.order])
                axes.plot(along.at[alone], known[along.order][alone], ".", color=colour, ms=1.5)
                axes.grid(color="#e6e6e6", linewidth=0.6)
                axes.set_axisbelow(True)
                axes.set_xlim(*along.ends)
                axes.set_ylim(*limits)
                bottom = row == len(shown) - 1 and at + columns >= len(items)
                ticks(axes, "x", along, along.ends, bottom, sheet.box[0])
                first = at % columns == 0 and side == 0
                ticks(axes, "y", counted("", 1), limits, first, sheet.box[1])
    return sheet


def _alone(values: Array) -> Array:
    """Which values have no neighbour, so that a line would not show them."""
    gone = np.isnan(np.concatenate([[np.nan], values, [np.nan]]))
    return np.logical_not(gone[1:-1]) & gone[:-2] & gone[2:]


def _limits(sides: Sequence[Sequence[Array]]) -> tuple[float, float]:
    """A range that holds every real value, and samples unless they are far outside."""
    values = [np.concatenate([item.ravel() for item in side]) for side in sides]
    known = [side[np.isfinite(side)] for side in values]
    known = [side for side in known if side.size] or [np.zeros(1)]
    low, high = float(known[0].min()), float(known[0].max())
    reach = (high - low) or max(abs(low), 1.0) * 1e-3
    everything = np.concatenate(known)
    low = max(low - reach / 2, min(low, float(everything.min())))
    high = min(high + reach / 2, max(high, float(everything.max())))
    return low - 0.05 * reach, high + 0.05 * reach


def _shape(
    items: Sequence[Array], channels: Sequence[str], axes: Sequence[tuple[str, str]]
) -> tuple[int, ...]:
    """The one shape of the items, which must be that of the channels and axes."""
    if not items:
        raise DataError("no items to draw")
    shapes = {tuple(np.shape(item)) for item in items}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != len(axes) + 1 or shape[0] != len(channels):
        raise DataError(
            f"arrays of shape {listed(map(str, sorted(shapes)))} are not all {len(channels)} "
            f"channels on {len(axes)} axes ({listed(name for name, _ in axes)})"
        )
    return shape
