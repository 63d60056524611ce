"""Recognize dimensions: time, ensemble member, x, y, level, a list of names, or unknown.

A dimension is recognized by its coordinate's attributes (CF conventions: axis, standard_name,
units), else by a two-dimensional latitude and longitude on it, else by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jitkit.domains.arrays.coordinates import coordinate, in_seconds, is_time
from jitkit.domains.arrays.plan import FULL_CIRCLE
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable

DimensionKind = Literal["time", "member", "x", "y", "level", "names", "unknown"]

NAMES: tuple[tuple[DimensionKind, str], ...] = (
    ("time", r"time\d*|t|tt|date|dates|day|days|hour|month|year|tau|.*_time|time_.*|step|steps"),
    ("time", r"lead|lead_?times?|prediction_timedelta|forecast_period|frame|frames"),
    (
        "member",
        r"(ensemble|member|reali[sz]ation|sample|simulation|trajectory|run|case)s?",
    ),
    ("member", r"(batch|subject|trial|epoch|patient|record|event|image|item|seed|scenario)(es|s)?"),
    ("member", r"ens|number|obs|index|idx|id|n|b|ensemble_.*|.*_members?|.*_id|param\w*|station"),
    ("x", r"(.*_)?(lon|longitude|x|easting|col|cols|column|columns|width)|[nri]lon|lon_?\d|x_?\d"),
    ("x", r"xc|xt_ocean|xh|xq|xu|xv|xi_\w+|xdim|nx|ni|i|i_g|west_east\w*|lon_\w+|grid_x\w*|x_\w+"),
    ("y", r"(.*_)?(lat|latitude|y|northing|row|rows|height_px)|[nrj]lat|lat_?\d|y_?\d|eta_\w+"),
    ("y", r"yc|yt_ocean|yh|yq|yu|yv|ydim|ny|nj|j|j_g|south_north\w*|lat_\w+|grid_y\w*|y_\w+"),
    (
        "level",
        r"z|zc|zt|zl|nz|k|st_ocean|bottom_top\w*|soil_layers\w*|lev_?\d|(p|n|k|i)?levs?",
    ),
    (
        "level",
        r"(.*_)?(level|levels|depth|height|altitude|layers?|pressure|sigma)|depth[tuvw]",
    ),
    ("level", r"isobaric.*|hybrid.*|model_level.*|olevel|pressure_\w+|height_\w+|deptht"),
    ("names", r"(channel|band|variable|feature|sensor|electrode|species|component|field|lead)s?"),
    ("names", r"chan|ch|c|var|vars|wavelength|component_\d|spectral_band|polari[sz]ation|rgb"),
)
"""Patterns of lower-case names; the first match counts."""

BY_STANDARD_NAME: Mapping[str, DimensionKind] = {
    "longitude": "x",
    "grid_longitude": "x",
    "projection_x_coordinate": "x",
    "latitude": "y",
    "grid_latitude": "y",
    "projection_y_coordinate": "y",
    "time": "time",
    "forecast_period": "time",
    "forecast_reference_time": "time",
    "realization": "member",
    "air_pressure": "level",
    "height": "level",
    "altitude": "level",
    "depth": "level",
    "model_level_number": "level",
    "radiation_wavelength": "names",
    "sensor_band_central_radiation_wavelength": "names",
}
BY_AXIS: Mapping[str, DimensionKind] = {"X": "x", "Y": "y", "Z": "level", "T": "time"}
BY_UNITS: tuple[tuple[str, DimensionKind], ...] = (
    (r"degrees?_?e(ast)?", "x"),
    (r"degrees?_?n(orth)?", "y"),
    (r"hpa|mbar|mb|millibars?|pa|kpa|dbar|sigma_level|level", "level"),
    (r"\w+ since .*", "time"),
)


def dimension_kind(store: Readable, dim: str) -> tuple[DimensionKind, str]:
    """Kind of a dimension, and the reason."""
    own = [c for name, c in store.coords.variables.items() if name == dim and c.dims == (dim,)]
    others = [c for name, c in store.coords.variables.items() if name != dim and c.dims == (dim,)]
    for c in own:
        if is_time(c.values):
            return "time", "times"
        if c.dtype.kind in "USOT":
            return "names", "names"
    for c in (*own, *others):
        if kind := kind_from_attributes(c.attrs):
            return kind
    for name, c in store.coords.variables.items():
        is_position = (kind_from_attributes(c.attrs) or ("", ""))[0] in ("x", "y")
        if c.ndim == 2 and dim in c.dims and is_position:
            return ("y" if c.dims[0] == dim else "x"), f"dimension of {name}"
    for part, pattern in NAMES:
        if re.fullmatch(pattern, dim.lower()):
            return part, "name"
    return "unknown", ""


def kind_from_attributes(attrs: Mapping[str, Any]) -> tuple[DimensionKind, str] | None:
    """Kind of a dimension from its coordinate's attributes, and the reason; None if unknown."""
    axis, name = str(attrs.get("axis", "")).upper(), str(attrs.get("standard_name", ""))
    units = str(attrs.get("units", "")).lower()
    if axis in BY_AXIS:
        return BY_AXIS[axis], f"axis {axis}"
    if name in BY_STANDARD_NAME:
        return BY_STANDARD_NAME[name], f"standard name {name}"
    if attrs.get("positive") in ("up", "down") or re.search(
        r"(ocean|atmosphere)_.*coordinate", name
    ):
        return "level", "positive up or down" if attrs.get("positive") else f"standard name {name}"
    for pattern, part in BY_UNITS:
        if re.fullmatch(pattern, units):
            return part, f"units {attrs['units']}"
    return None


# The coordinate of a dimension


def numeric_coordinate(store: Readable, dim: str) -> Array | None:
    """Numeric coordinate of a dimension, float64; None if it has none."""
    if dim not in store.coords.variables or store.coords[dim].dims != (dim,):
        return None
    values = np.asarray(store.coords[dim].values)
    return values.astype(np.float64) if values.dtype.kind in "iuf" else None


def is_evenly_spaced(values: Array | None) -> bool:
    """Whether steps are equal within 1 %; True without a coordinate or with fewer than 3 values."""
    if values is None or len(values) < 3:
        return True
    steps = np.diff(values)
    return bool(steps[0]) and bool(np.allclose(steps, steps.mean(), rtol=1e-2, atol=1e-6))


def is_periodic(store: Readable, dim: str) -> bool | None:
    """Whether a dimension covers 360 degrees of longitude, within a cell.

    None if there is no such coordinate.
    """
    values = numeric_coordinate(store, dim)
    if values is not None:
        periodic = _covers_circle(store.coords[dim].attrs, values)
        if periodic is not None:
            return periodic
    for c in store.coords.variables.values():
        if c.ndim == 2 and c.dims[1] == dim and _is_longitude(c.attrs) and c.shape[1] > 2:
            rows = _unwrapped(np.asarray(c.values, np.float64))
            rows = rows[np.isfinite(rows).all(axis=1)]
            if len(rows):  # medians: folded grids (ORCA, tripolar) leave the parallels in the north
                step = np.median(np.diff(rows, axis=1), axis=1)
                error = np.abs(np.abs(rows[:, -1] - rows[:, 0] + step) - FULL_CIRCLE)
                return bool(np.median(error) <= np.median(np.abs(step)))
    return None


def _covers_circle(attrs: Mapping[str, Any], values: Array) -> bool | None:
    """Whether evenly spaced values cover 360 degrees; None if the coordinate is not an angle."""
    units = str(attrs.get("units", ""))
    if not (units.startswith("degree") or _is_longitude(attrs)) or len(values) < 3:
        return None
    step = abs(values[-1] - values[0]) / (len(values) - 1)
    return is_evenly_spaced(values) and bool(abs(step * len(values) - FULL_CIRCLE) < step / 2)


def _is_longitude(attrs: Mapping[str, Any]) -> bool:
    units = str(attrs.get("units", "")).lower()
    return attrs.get("standard_name") == "longitude" or bool(re.match(r"degrees?_?e", units))


def _unwrapped(rows: Array) -> Array:
    """Longitudes along rows without jumps of 360 degrees."""
    steps = (np.diff(rows, axis=1) + 180) % FULL_CIRCLE - 180
    return np.concatenate([rows[:, :1], rows[:, :1] + np.cumsum(steps, axis=1)], axis=1)


def step_hours(store: Readable, dim: str) -> float | None:
    """Median step of a time coordinate in hours; None if it does not hold times."""
    if dim not in store.coords.variables or store.coords[dim].dims != (dim,):
        return None
    values = coordinate(store, dim, store.coords.sizes[dim])
    if len(values) < 2 or not is_time(values):
        return None
    steps = np.diff(values)
    if steps.dtype.kind == "m":
        return float(np.median(np.abs(steps / np.timedelta64(1, "h"))))
    return float(np.median([abs(in_seconds(step)) for step in steps])) / 3600
