"""Layout of a plane of an array in a figure: directions, degrees, uneven steps, coastlines.

Only coordinates; `panels` draws them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from jitkit.utils.types import Array

Lines = list[Array]  # each (points, 2), x and y

LATITUDE = re.compile(r"degrees?_?n(orth)?", re.I)
LONGITUDE = re.compile(r"degrees?_?e(ast)?", re.I)
NAMES = {
    "NS": re.compile(r"(nav_?|x|tl|u|t)?lat(s|itude|itudes)?([_.]?[a-z0-9]{1,3})?", re.I),
    "EW": re.compile(r"(nav_?|x|tl|u|t)?lon(s|g|gitude|gitudes)?([_.]?[a-z0-9]{1,3})?", re.I),
}
DOWNWARDS = re.compile(r"(pa|hpa|mbar|millibars?|db|dbar|decibars?)", re.I)
RASTER = 720  # maximum points along an axis with uneven steps
SMOOTH = 200  # pixels from which a coastline may cut the corners of cells
UNRELATED = (0.6, 1.4)  # height over width of a plane with unrelated axes
UNEVEN = 3.0  # cells whose steps differ by more are drawn equally wide, with values as ticks


@dataclass(frozen=True)
class Ruler:
    """One axis of a figure.

    Attributes:
        at: positions of cells, ascending with even or nearly even steps, (N,).
        order: indices of these cells, (N,).
        label: name and unit; empty for latitude and longitude.
        compass: ``"NS"`` for latitude, ``"EW"`` for longitude, else empty.
        ticks: positions and their text; None leaves them to the drawing.
        down: whether values increase downwards (depth, pressure).
        unit: of ``values``, and of ``at`` unless it has ticks; empty for indices.
        values: the coordinate, in the order of the array, (N,); None for indices.
    """

    at: Array
    order: Array
    label: str
    compass: Literal["", "NS", "EW"] = ""
    ticks: Sequence[tuple[float, str]] | None = None
    down: bool = False
    unit: str = ""
    values: Array | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """Outer edges of the first and last cell."""
        if len(self.at) == 1:
            return float(self.at[0]) - 0.5, float(self.at[0]) + 0.5
        first, last = self.at[1] - self.at[0], self.at[-1] - self.at[-2]
        low, high = self.at[0] - first / 2, self.at[-1] + last / 2
        if self.compass == "NS":  # cells end at the pole
            low, high = max(low, -90.0), min(high, 90.0)
        return float(low), float(high)

    @property
    def cells(self) -> Array:
        """Cells nearest to evenly spaced points between the ends."""
        steps = np.diff(self.at)
        if len(self.at) < 3 or np.ptp(steps) < 0.02 * steps.max():
            return self.order
        low, high = self.ends
        n = min(RASTER, 2 * len(self.at))
        points = low + (high - low) * (np.arange(n) + 0.5) / n
        return self.order[np.searchsorted((self.at[1:] + self.at[:-1]) / 2, points)]


@dataclass(frozen=True)
class FieldView:
    """A plane of an array as pixels.

    Attributes:
        index: flat cell index for each pixel (H, W), bottom row first; -1 is outside the grid.
        extent: left, right, bottom and top.
        aspect: height over width in the units of the data.
        x, y: the axes.
        lines: parallels and meridians of a grid that is not aligned with them.
        marks: their degrees, as x, y and text.
    """

    index: Array
    extent: tuple[float, float, float, float]
    aspect: float
    x: Ruler
    y: Ruler
    lines: Lines = field(default_factory=list)
    marks: Sequence[tuple[float, float, str]] = ()

    def to_pixels(self, plane: Array) -> Array:
        """Values of a plane (Xa, Xb) as pixels, NaN outside."""
        return np.where(self.index < 0, np.nan, plane.ravel()[self.index])  # (H, W)

    def coast(self, absent: Array) -> Lines:
        """Outline of cells (Xa, Xb) that are always missing, in the units of the axes."""
        if not absent.any() or absent.all():
            return []
        inside = np.where(self.index < 0, np.nan, absent.ravel()[self.index])
        for axis, size in enumerate(inside.shape):  # so that lines follow cell edges
            inside = inside.repeat(-(-SMOOTH // size), axis=axis)
        height, width = inside.shape
        left, right, bottom, top = self.extent
        x = left + (right - left) * (np.arange(width) + 0.5) / width
        y = bottom + (top - bottom) * (np.arange(height) + 0.5) / height
        return contours(x, y, inside, 0.5)


def downsample(pixels: Array, outside: Array, height: float, width: float) -> tuple[Array, Array]:
    """Reduce pixels (H, W) to block means, near the resolution of the panel.

    Args:
        outside: True at pixels outside the grid, (H, W); a block takes its first pixel's value.
        height, width: pixels of the panel.
    """
    rows, columns = (max(1, int(n / m)) for n, m in zip(pixels.shape, (height, width), strict=True))
    if rows == columns == 1:
        return pixels, outside
    padding = [(0, -n % by) for n, by in zip(pixels.shape, (rows, columns), strict=True)]
    padded = np.pad(pixels, padding, mode="edge")
    known = np.isfinite(padded)
    sums = np.where(known, padded, 0)
    for axis, by in ((0, rows), (1, columns)):
        at = np.arange(0, padded.shape[axis], by)
        sums, known = (np.add.reduceat(x, at, axis=axis, dtype=float) for x in (sums, known))
    means = np.divide(sums, known, out=np.full(sums.shape, np.nan), where=known > 0)
    return means, outside[::rows, ::columns]


def contours(x: Array, y: Array, z: Array, level: float) -> Lines:
    """Contour lines of z (H, W) at ``level``."""
    from contourpy import LineType, contour_generator

    if min(z.shape) < 2:
        return []
    generator = contour_generator(x, y, np.ma.masked_invalid(z), line_type=LineType.Separate)
    return [np.asarray(line) for line in generator.lines(level)]


def compass(name: str, unit: str) -> Literal["", "NS", "EW"]:
    """Whether a coordinate is latitude (NS) or longitude (EW), by its CF unit or name.

    >>> compass("y", "degrees_north"), compass("nav_lon", ""), compass("grid_latitude", "degrees")
    ('NS', 'EW', '')
    """
    if LATITUDE.fullmatch(unit):
        return "NS"
    if LONGITUDE.fullmatch(unit):
        return "EW"
    if NAMES["NS"].fullmatch(name):
        return "NS"
    return "EW" if NAMES["EW"].fullmatch(name) else ""


def format_degrees(at: float, compass: str) -> str:
    """A latitude or longitude as map label.

    >>> format_degrees(-30, "NS"), format_degrees(270, "EW"), format_degrees(0, "EW")
    ('30°S', '90°W', '0°')
    """
    at = (at + 180) % 360 - 180 if compass == "EW" else at
    at = round(at, 4)
    if at == 0 or (compass == "EW" and abs(at) == 180):
        return f"{abs(at):g}°"
    return f"{abs(at):g}°{compass[0] if at > 0 else compass[1]}"


def coordinate_ruler(name: str, size: int, coord: Array | None = None, unit: str = "") -> Ruler:
    """The figure axis of an array axis.

    Args:
        name: name of the array axis.
        size: cells along it.
        coord: (size,) numbers or times; indices are used for anything else.
        unit: unit of ``coord``.
    """
    at, unit = _numeric(coord, unit)
    if at is None or at.shape != (size,) or not np.isfinite(at).all():
        return index_ruler(name, size)
    which = compass(name, unit)
    if which == "EW":
        at = unwrap_longitude(at)
    order = np.argsort(at, kind="stable")
    steps = np.diff(at[order])
    if (steps <= 0).any():
        return index_ruler(name, size)
    label = "" if which else with_unit(name, format_unit(unit))
    down = name.lower().startswith("depth") or bool(DOWNWARDS.fullmatch(unit))
    if not which and steps.size and steps.max() > UNEVEN * steps.min():
        shown = np.unique(np.linspace(0, size - 1, min(size, 5)).round().astype(int))
        ticks = [(float(i), f"{at[order[i]]:.4g}") for i in shown]
        return Ruler(np.arange(size, dtype=float), order, label, "", ticks, down, unit, at)
    return Ruler(at[order], order, label, which, None, down, unit, at)


def index_ruler(name: str, size: int) -> Ruler:
    """A figure axis in cell indices from 0."""
    return Ruler(np.arange(size, dtype=float), np.arange(size), name)


def unwrap_longitude(longitude: Array) -> Array:
    """Longitudes shifted by multiples of 360° to be contiguous; -180 to 180 if global.

    >>> unwrap_longitude(np.array([358.0, 359.0, 0.0, 1.0]))
    array([-2., -1.,  0.,  1.])
    """
    ordered = np.sort(longitude[np.isfinite(longitude)].ravel() % 360)
    gaps = np.diff(ordered, append=ordered[:1] + 360)
    widest = int(gaps.argmax())
    steps = np.sort(gaps[gaps > 0])
    if gaps[widest] <= max(2 * steps[len(steps) // 2], 10) and gaps[widest] < 180:
        start = -180.0  # global
    else:
        start = float(ordered[(widest + 1) % len(ordered)])
        start -= 360.0 if start > 180 else 0.0
    shifted = (longitude - start) % 360
    return np.where(shifted > 360 - 1e-4, 0, shifted) + start


def plane_view(y: Ruler, x: Ruler, *, transposed: bool = False) -> FieldView:
    """The plane of two axes; ``transposed`` where the array has x before y."""
    rows, columns = y.cells, x.cells
    if transposed:
        index = columns[None, :] * len(y.at) + rows[:, None]
    else:
        index = rows[:, None] * len(x.at) + columns[None, :]
    (left, right), (bottom, top) = x.ends, y.ends
    aspect = len(y.at) / len(x.at)
    if x.ticks is None and y.ticks is None and bool(x.compass) == bool(y.compass):
        same = x.unit == y.unit or x.compass
        aspect = (top - bottom) / (right - left) if same else float(np.clip(aspect, *UNRELATED))
    elif x.values is not None or y.values is not None:
        aspect = float(np.clip(aspect, *UNRELATED))
    return FieldView(index, (left, right, bottom, top), aspect, x, y)


def _numeric(coord: Array | None, unit: str) -> tuple[Array | None, str]:
    """A coordinate as float64 with its unit; None if it is neither numeric nor a time."""
    if coord is None:
        return None, ""
    coord = np.asarray(coord)
    if coord.dtype.kind == "M":
        seconds = (coord - coord.ravel()[0]) / np.timedelta64(1, "s")
        days = bool(seconds.size and np.ptp(seconds) > 4 * 86_400)
        return seconds / (86_400 if days else 3_600), "days" if days else "hours"
    if coord.dtype.kind not in "iuf":
        return None, ""
    at = coord.astype(np.float64)
    if unit in ("m", "metre", "metres", "meter", "meters") and np.abs(at).max(initial=0) >= 2e4:
        return at / 1000, "km"
    return at, unit


def with_unit(name: str, unit: str) -> str:
    """A name with its unit in brackets."""
    return f"{name} ({unit})" if unit else name


POWERS = str.maketrans("-+0123456789", "⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_unit(unit: str) -> str:
    """A CF unit as printed; empty for dimensionless values.

    >>> format_unit("kg m**-2 s-1"), format_unit("degree_C"), format_unit("1e-3"), format_unit("1")
    ('kg m⁻² s⁻¹', '°C', '10⁻³', '')
    """
    unit = re.sub(
        r"\b1[eE]([-+]?[0-9]+)", lambda match: "10" + match[1].translate(POWERS), unit.strip()
    )
    if unit in ("1", "dimensionless", "none", "-"):
        return ""
    if re.fullmatch(r"deg(rees?)?_?c(elsius)?|celsius", unit, re.I):
        return "°C"
    if re.fullmatch(r"degrees?", unit, re.I):
        return "°"
    power = re.compile(r"\b(?!log)([A-Za-zµΩ]{1,6})(?:\*\*|\^)?(-?[0-9]+)\b")
    return power.sub(lambda match: match[1] + match[2].translate(POWERS), unit)
