"""Views of the planes of a grid, including curvilinear grids with 2-D latitude and longitude."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from jitkit.plots.views import (
    FieldView,
    Ruler,
    compass,
    contours,
    coordinate_ruler,
    format_degrees,
    plane_view,
    unwrap_longitude,
)
from jitkit.utils.types import Array

RASTER = 720  # pixels across a curvilinear grid, at most
FINEST = 16  # parts per side of a cell, at most
GLOBE = 355.0  # degrees of longitude from which a grid is global
POLAR = 15.0  # degrees of latitude between a polar grid and the equator


def plane_views(
    axes: Sequence[tuple[str, str]],
    shape: Sequence[int],
    coords: Mapping[str, Array],
    units: Mapping[str, str],
) -> dict[tuple[int, int], FieldView]:
    """The view of every plane of a grid of two to four axes, by pair of axes."""
    rulers = [
        coordinate_ruler(name, size, coords.get(name), units.get(name, ""))
        for (name, _), size in zip(axes, shape, strict=True)
    ]
    views = {}
    for b in range(1, len(axes)):
        for a in range(b):
            transposed = rulers[a].compass == "EW" and rulers[b].compass != "EW"
            up, across = (rulers[b], rulers[a]) if transposed else (rulers[a], rulers[b])
            views[a, b] = plane_view(up, across, transposed=transposed)
    curvilinear = _cell_coordinates(coords, units, tuple(shape[-2:]))
    view = None if curvilinear is None else curved_grid_view(*curvilinear)
    if view is not None:
        views[len(axes) - 2, len(axes) - 1] = view
    return views


def _cell_coordinates(
    coords: Mapping[str, Array], units: Mapping[str, str], shape: tuple[int, ...]
) -> tuple[Array, Array] | None:
    """2-D latitudes and longitudes of the cells, if the coordinates have both."""
    flat = {name: at for name, at in coords.items() if np.shape(at) == shape and len(shape) == 2}
    which = {compass(name, units.get(name, "")): np.asarray(at) for name, at in flat.items()}
    return (which["NS"], which["EW"]) if {"NS", "EW"} <= set(which) else None


def curved_grid_view(latitude: Array, longitude: Array) -> FieldView | None:
    """A curvilinear grid with latitudes and longitudes of each cell, (Xa, Xb) each.

    Drawn on latitude and longitude, each pixel from the cell that covers it. A grid around a pole,
    which would be torn there, is drawn on the grid axes, with parallels and meridians. None where
    too few cells have coordinates.
    """
    known = np.isfinite(latitude) & np.isfinite(longitude)
    known &= (np.abs(latitude) <= 90.01) & (np.abs(longitude) <= 720)  # some are fill values
    if min(latitude.shape) < 2 or known.sum() < 4:
        return None
    at_y = np.where(known, latitude, np.nan).astype(np.float64)
    at_x = unwrap_longitude(np.where(known, longitude, np.nan).astype(np.float64))
    low, high = float(np.nanmin(at_y)), float(np.nanmax(at_y))
    round_pole = low * high > 0 and min(abs(low), abs(high)) > POLAR
    if round_pole and np.nanmax(at_x) - np.nanmin(at_x) > 340:
        return _on_own_axes(at_y, at_x)
    return _on_degrees(at_y, at_x)


def _on_degrees(at_y: Array, at_x: Array) -> FieldView:
    """A grid drawn on latitude and longitude."""
    steps_y, steps_x = _steps(at_y, None), _steps(at_x, 360.0)
    steps_x = np.where(np.abs(steps_x).max(axis=0) > 90, 0, steps_x)  # undefined next to a pole
    half_x, half_y = (np.median(np.abs(s).max(axis=0)) / 2 for s in (steps_x, steps_y))
    left, right = float(np.nanmin(at_x) - half_x), float(np.nanmax(at_x) + half_x)
    if right - left > GLOBE:
        left, right = -180.0, 180.0
    bottom = max(-90.0, float(np.nanmin(at_y) - half_y))
    top = min(90.0, float(np.nanmax(at_y) + half_y))
    x = Ruler(np.array([left, right]), np.arange(2), "", "EW", unit="degrees")
    y = Ruler(np.array([bottom, top]), np.arange(2), "", "NS", unit="degrees")
    aspect = (top - bottom) / max(right - left, 1e-6)
    extent = (left, right, bottom, top)
    index = _fill_holes(_rasterized(at_y, at_x, steps_y, steps_x, extent))
    return FieldView(index, extent, aspect, x, y)


def _rasterized(
    at_y: Array, at_x: Array, steps_y: Array, steps_x: Array, extent: tuple[float, ...]
) -> Array:
    """The cell of each pixel (H, W): cells are split into parts, and each part marks a pixel."""
    left, right, bottom, top = extent
    width = int(np.clip(3 * max(at_x.shape), 60, RASTER))
    height = int(np.clip(width * (top - bottom) / max(right - left, 1e-6), 2, RASTER))
    per_x, per_y = width / max(right - left, 1e-6), height / max(top - bottom, 1e-6)
    longest = np.hypot(steps_x * per_x, steps_y * per_y).max(axis=0)  # pixels
    parts = int(np.clip(np.ceil(1.5 * np.percentile(longest, 99)), 2, FINEST))
    shares = sorted((np.arange(parts) + 0.5) / parts - 0.5, key=abs, reverse=True)
    cell = np.arange(at_x.size).reshape(at_x.shape)
    index = np.full((height, width), -1)
    for u, v in product(shares, shares):  # centres of cells last, over the edges of others
        x = at_x + u * steps_x[0] + v * steps_x[1]
        y = at_y + u * steps_y[0] + v * steps_y[1]
        if right - left > GLOBE:
            x = (x + 180) % 360 - 180
        column, row = (x - left) * per_x, (y - bottom) * per_y
        hit = (column >= 0) & (column < width) & (row >= 0) & (row < height)  # False for NaN
        index[row[hit].astype(int), column[hit].astype(int)] = cell[hit]
    return index


def _steps(at: Array, period: float | None) -> Array:
    """Change of a coordinate per step along each axis of a grid, (2, Xa, Xb)."""
    steps = np.zeros((2, *at.shape))
    for axis in range(2):
        step = np.diff(at, axis=axis)
        if not step.size:
            continue
        if period:
            step = (step + period / 2) % period - period / 2
        first, last = np.take(step, [0], axis), np.take(step, [-1], axis)
        before, after = (np.concatenate(s, axis=axis) for s in ((first, step), (step, last)))
        before, after = (
            np.where(np.isnan(before), after, before),
            np.where(np.isnan(after), before, after),
        )
        steps[axis] = np.nan_to_num((before + after) / 2)
    return steps


def _fill_holes(index: Array, passes: int = 2) -> Array:
    """Fill holes of one or two pixels from their neighbours."""
    for _ in range(passes):
        sides = [np.roll(index, shift, axis) for axis in (0, 1) for shift in (1, -1)]
        sides[0][0], sides[1][-1], sides[2][:, 0], sides[3][:, -1] = -1, -1, -1, -1
        neighbours = np.sum([side >= 0 for side in sides], axis=0)
        hole = (index < 0) & (neighbours >= 3)
        index = np.where(hole, np.max(sides, axis=0), index)
    return index


def _on_own_axes(at_y: Array, at_x: Array) -> FieldView:
    """A grid drawn on its grid axes, with parallels and meridians."""
    height, width = at_y.shape
    x, y = np.arange(float(width)), np.arange(float(height))
    lines, marks = [], []
    for level in range(-80, 90, 10):
        found = contours(x, y, at_y, level)
        lines += found
        if found:  # the longest line is labelled, at its point nearest to a corner
            line = max(found, key=len)
            at = line[np.argmin(line.sum(axis=1))]
            marks.append((float(at[0]), float(at[1]), format_degrees(level, "NS")))
    for level in range(-180, 180, 30):
        offset = (at_x - level + 180) % 360 - 180
        offset = np.where((np.abs(offset) < 60) & (np.abs(at_y) < 88), offset, np.nan)
        meridians = contours(x, y, offset, 0)
        lines += meridians
        if meridians and level % 90 == 0:
            line = max(meridians, key=len)
            at = line[np.abs(line / (width - 1, height - 1) - 0.5).max(axis=1).argmax()]
            marks.append((float(at[0]), float(at[1]), format_degrees(level, "EW")))
    up, across = (Ruler(at, np.arange(len(at)), "", ticks=()) for at in (y, x))
    view = plane_view(up, across)
    return replace(view, lines=lines, marks=marks, aspect=height / width)
