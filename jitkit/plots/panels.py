"""Figures of sampled and real arrays: maps, lines and slices, a row per channel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError, JitkitError, listed
from jitkit.metrics.fields.summaries import linspace_indices
from jitkit.plots.grids import plane_views
from jitkit.plots.scales import ColourScale, format_number, ticks
from jitkit.plots.sheet import DPI, PanelBlock, Sheet
from jitkit.plots.views import (
    FieldView,
    Lines,
    coordinate_ruler,
    downsample,
    format_degrees,
    format_unit,
    index_ruler,
    with_unit,
)
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.Image import Image

ASPECTS = (0.3, 1.6)  # limits of height over width of a panel
FLAT = 0.42  # height over width of a line panel
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
TIME_AXIS = re.compile(r"(.*time.*|t|step|frame|window|hour|day|month|year|lead)", re.I)


@dataclass(frozen=True)
class Plane:
    """A plane through an array: the fixed indices, the two remaining axes, its title."""

    fixed: tuple[int | slice, ...]
    axes: tuple[int, int]
    title: str = ""

    def select(self, item: Array) -> Array:
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
    """Real items on the left, samples on the right, with one colour scale per channel.

    One axis is drawn as a line, two as a map. Three: maps (the last two axes are latitude and
    longitude, or the first is time) at the first, middle and last step of the first axis; other
    volumes by their three middle slices. Four: the middle of the second axis at the first, middle
    and last step of the first. Missing cells are grey, with a coastline where they are the same in
    every item.

    Args:
        sampled: arrays (C, X1..Xn), physical units, NaN missing.
        real: the same of real items; may be empty, then only samples are drawn.
        channels: C names.
        axes: name and kind (``"line"`` or ``"circle"``) of X1..Xn.
        units: units of the channels, by name.
        coords: coordinates by axis name, each (Xi,); latitude and longitude may instead be 2-D,
            over the last two axes, recognised by unit or name.
        coord_units: CF units of coordinates (``degrees_north``, ``m``), by the names of ``coords``.
        most_channels: maximum number of rows; the title notes a subset of channels.
        most_items: maximum number of items per side; two for volumes and films.

    Raises:
        DataError: no items, or arrays whose shape does not fit ``channels`` and ``axes``.
        JitkitError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as missing:
        raise JitkitError(
            "figures of arrays need matplotlib, which is not installed: pip install matplotlib"
        ) from missing
    shape = _shape([*real, *sampled], channels, axes)
    most = most_items if len(axes) < 3 else min(2, most_items)
    sides = [("real", real, REAL), ("sampled", sampled, SAMPLED)]
    blocks: list[PanelBlock] = [
        (name, [np.asarray(item) for item in items[:most]], colour)
        for name, items, colour in sides
        if len(items)
    ]
    geometry = _Geometry(channels, units or {}, axes, shape, coords or {}, coord_units or {})
    shown = linspace_indices(len(channels), most_channels)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # independent of the user's style
        matplotlib.rcParams.update(STYLE)
        draw = _lines if len(axes) == 1 else _planes
        sheet = draw(blocks, shown, geometry)
        few = f"{len(shown)} of {len(channels)} channels" if len(shown) < len(channels) else ""
        sheet.note(", ".join(filter(None, (few, geometry.where))))
        return sheet.image()


class _Geometry:
    """Channels, axes, units and planes of a figure."""

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
        self.units = {name: format_unit(units.get(name, "")) for name in channels}
        self.rulers = [
            coordinate_ruler(name, size, coords.get(name), coord_units.get(name, ""))
            for (name, _), size in zip(axes, self.grid, strict=True)
        ]
        self.views = plane_views(axes, self.grid, coords, coord_units)
        self.where = ""

    def planes(self) -> list[Plane]:
        """The planes drawn of every item."""
        n = len(self.axes)
        if n == 2:
            return [Plane((), (0, 1))]
        last = self.views[n - 2, n - 1]
        is_series = bool(TIME_AXIS.fullmatch(self.axes[0][0]))
        if n == 3 and not is_series and not (last.x.compass and last.y.compass):
            return [self._middle(axis) for axis in range(3)]
        middle = tuple(size // 2 for size in self.grid[1:-2])
        if middle:
            self.where = "at " + self._position_text(1, middle[0])
        steps = linspace_indices(self.grid[0], 3)
        return [Plane((i, *middle), (n - 2, n - 1), self._position_text(0, i)) for i in steps]

    def _middle(self, axis: int) -> Plane:
        i = self.grid[axis] // 2
        fixed = tuple(i if a == axis else slice(None) for a in range(3))
        first, second = (a for a in range(3) if a != axis)
        return Plane(fixed, (first, second), self._position_text(axis, i))

    def _position_text(self, axis: int, i: int) -> str:
        """Position of index ``i`` along an axis as text."""
        name, along = self.axes[axis][0], self.rulers[axis]
        if along.values is None:
            return f"{name} {i + 1} of {self.grid[axis]}"
        if along.compass:
            return format_degrees(float(along.values[i]), along.compass)
        unit = format_unit(along.unit)
        space = "" if unit == "°" else " "
        return f"{name} = {format_number(along.values[i], 4)}{space}{unit}".rstrip()


def _planes(blocks: Sequence[PanelBlock], shown: Sequence[int], geometry: _Geometry) -> Sheet:
    """Draw maps and slices."""
    planes = geometry.planes()
    views = [geometry.views[plane.axes] for plane in planes]
    aspects = [float(np.clip(view.aspect, *ASPECTS)) for view in views]
    most = max(len(items) for _, items, _ in blocks)
    columns = len(planes) if len(planes) > 1 else _columns(most, aspects[0])
    same_axes = len({plane.axes for plane in planes}) == 1  # else each panel has its own ticks
    sheet = Sheet(
        blocks,
        len(shown),
        columns,
        lines=-(-most * len(planes) // columns),
        aspect=max(aspects),
        titles=[plane.title for plane in planes] if len(planes) > 1 else [],
        labelled=any(view.x.label for view in views),
        own_ticks=not same_axes,
    )
    for row, c in enumerate(shown):
        colours = ColourScale([[item[c] for item in items] for _, items, _ in blocks])
        colours.bar(sheet.bar(row), geometry.units[geometry.channels[c]])
        sheet.name(row, geometry.channels[c])
        all_items = [item[c] for _, items, _ in blocks for item in items]
        coasts = [
            view.coast(_always_missing(all_items, plane))
            for plane, view in zip(planes, views, strict=True)
        ]
        for side, (_, items, _) in enumerate(blocks):
            last = row == len(shown) - 1
            for at in range(len(items) * len(planes)):
                item, i = items[at // len(planes)][c], at % len(planes)
                axes = sheet.panel(row, side, at, aspects[i])
                _draw_plane(axes, planes[i].select(item), views[i], colours, coasts[i], sheet.box)
                bottom = last and at + columns >= len(items) * len(planes)
                first = at % columns == 0 and side == 0 or not same_axes
                _draw_axes(axes, views[i], bottom, first, sheet.box)
    return sheet


def _columns(num: int, aspect: float) -> int:
    """Panels per row of a side, so that each is large enough to read."""
    if num <= 4 or aspect < 0.4:
        return min(num, 2)
    return min(4, -(-num // 2))


def _always_missing(items: Sequence[Array], plane: Plane) -> Array:
    """Cells of a plane that are missing in every item; none if items differ."""
    missing = np.stack([np.logical_not(np.isfinite(plane.select(item))) for item in items])
    return missing[0] if (missing == missing[0]).all() else np.zeros_like(missing[0])


def _draw_plane(
    axes: Axes,
    plane: Array,
    view: FieldView,
    colours: ColourScale,
    coast: Lines,
    inches: tuple[float, float],
) -> None:
    from matplotlib.collections import LineCollection

    width, height = (2 * DPI * size for size in inches)
    pixels, outside = downsample(view.to_pixels(plane), view.index < 0, height, width)
    rgba = colours.to_rgba(pixels)
    rgba[outside] = 0  # transparent
    axes.imshow(rgba, origin="lower", extent=view.extent, aspect="auto")
    for lines, colour in ((view.lines, "#909090"), (coast, "#202020")):
        collection = LineCollection(lines, colors=colour, linewidths=0.5)
        axes.add_collection(collection, autolim=False)


def _draw_axes(
    axes: Axes, view: FieldView, bottom: bool, first: bool, inches: tuple[float, float]
) -> None:
    """Ticks, and labels on outer panels only."""
    left, right, low, high = view.extent
    axes.set_xlim(left, right)
    axes.set_ylim((high, low) if view.y.down else (low, high))
    ticks(axes, "x", view.x, (left, right), bottom, inches[0])
    ticks(axes, "y", view.y, (low, high), first, inches[1])
    for x, y, text in view.marks if first else ():
        box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.8}
        axes.text(x, y, text, size=6, ha="center", va="center", color="#202020", bbox=box)


def _lines(blocks: Sequence[PanelBlock], shown: Sequence[int], geometry: _Geometry) -> Sheet:
    """Arrays of one axis as lines, one item per panel, one range per channel."""
    along = geometry.rulers[0]
    columns = min(2, max(len(items) for _, items, _ in blocks))
    lines = max(-(-len(items) // columns) for _, items, _ in blocks)
    sheet = Sheet(blocks, len(shown), columns, lines, FLAT, labelled=bool(along.label), bar=0.2)
    for row, c in enumerate(shown):
        name = geometry.channels[c]
        sheet.name(row, with_unit(name, geometry.units[name]))
        limits = _limits([[item[c] for item in items] for _, items, _ in blocks])
        for side, (_, items, colour) in enumerate(blocks):
            for at, item in enumerate(items):
                axes = sheet.panel(row, side, at, FLAT)
                known = np.where(np.isfinite(item[c]), item[c], np.nan)
                axes.plot(along.at, known[along.order], color=colour, linewidth=0.9)
                isolated = _isolated(known[along.order])
                axes.plot(
                    along.at[isolated], known[along.order][isolated], ".", color=colour, ms=1.5
                )
                axes.grid(color="#e6e6e6", linewidth=0.6)
                axes.set_axisbelow(True)
                axes.set_xlim(*along.ends)
                axes.set_ylim(*limits)
                bottom = row == len(shown) - 1 and at + columns >= len(items)
                ticks(axes, "x", along, along.ends, bottom, sheet.box[0])
                first = at % columns == 0 and side == 0
                ticks(axes, "y", index_ruler("", 1), limits, first, sheet.box[1])
    return sheet


def _isolated(values: Array) -> Array:
    """Values without observed neighbours, which a line would not show."""
    missing = np.isnan(np.concatenate([[np.nan], values, [np.nan]]))
    return np.logical_not(missing[1:-1]) & missing[:-2] & missing[2:]


def _limits(sides: Sequence[Sequence[Array]]) -> tuple[float, float]:
    """A range with all real values, and all samples that are not far outside."""
    values = [np.concatenate([item.ravel() for item in side]) for side in sides]
    known = [side[np.isfinite(side)] for side in values]
    known = [side for side in known if side.size] or [np.zeros(1)]
    low, high = float(known[0].min()), float(known[0].max())
    width = (high - low) or max(abs(low), 1.0) * 1e-3
    combined = np.concatenate(known)
    low = max(low - width / 2, min(low, float(combined.min())))
    high = min(high + width / 2, max(high, float(combined.max())))
    return low - 0.05 * width, high + 0.05 * width


def _shape(
    items: Sequence[Array], channels: Sequence[str], axes: Sequence[tuple[str, str]]
) -> tuple[int, ...]:
    """The common shape of the items, checked against channels and axes."""
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
