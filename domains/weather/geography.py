"""Dimensions of a store: time, latitude and longitude, their coordinates and cell areas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays import (
    coordinate,
    dimension_kind,
    is_evenly_spaced,
    is_periodic,
    is_time,
    label,
)
from jitkit.domains.weather.section import Variables
from jitkit.domains.weather.sphere import CIRCLE, cell_areas, longitude_widths
from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable


EMPTIED = (
    ". Overrides add to the variables of a recipe; to replace them give domain.variables=null first"
)


@dataclass(frozen=True)
class Dims:
    """Names of the dimensions of fields by role."""

    time: str
    y: str
    x: str

    @property
    def all(self) -> tuple[str, str, str]:
        """Time, y, x."""
        return self.time, self.y, self.x


def predicted_variables(
    store: Readable, requested: Variables | None
) -> dict[str, list[float] | None]:
    """The predicted variables with their requested levels; all fields of the store by default."""
    if requested is not None:
        if not requested:
            raise RecipeError("domain.variables: name at least one")
        for name, levels in requested.items():
            if name not in store.variables and not by_level(store, name, levels or ()):
                known = listed(store.variables, 20)
                near = nearest(name, store.variables) or EMPTIED
                raise DataError(
                    f"{store.path}: no variable {name!r} (domain.variables); it has {known}{near}"
                )
        return dict(requested)
    found: dict[str, list[float] | None] = {}
    for name, v in sorted(store.variables.items()):
        parts = {dimension_kind(store, dim)[0] for dim in v.dims}
        if v.dtype.kind in "fiu" and parts >= {"time", "y", "x"}:
            found[name] = None
    if not found:
        raise DataError(
            f"{store.path}: no variable has time, latitude and longitude; it has "
            + listed([f"{n}({', '.join(v.dims)})" for n, v in store.variables.items()], 12)
        )
    return found


def by_level(store: Readable, name: str, levels: Sequence[float]) -> list[str]:
    """Single-level variables as anemoi-datasets names them: ``t_500``."""
    found = [f"{name}_{label(level)}" for level in levels]
    return found if found and all(each in store.variables for each in found) else []


def find_dims(store: Readable, names: Mapping[str, Any] | None = None) -> Dims:
    """Which dimensions are time, y and x.

    Args:
        store: the data.
        names: variables that must have them; all variables that do where not given.

    Raises:
        DataError: one is missing, or there are several.
    """
    chosen = [n for n in names or () if n in store.variables]
    variables = chosen or list(predicted_variables(store, None))
    all_dims = dict.fromkeys(d for name in variables for d in store.variables[name].dims)
    parts: dict[str, list[str]] = {}
    for dim in all_dims:
        parts.setdefault(dimension_kind(store, dim)[0], []).append(dim)
    times = [d for d in parts.get("time", []) if is_time(coordinate_of(store, d))]
    found = {"time": times, "latitude": parts.get("y", []), "longitude": parts.get("x", [])}
    for part, dims in found.items():
        if len(dims) != 1:
            what = f"several ({listed(dims)})" if dims else "none"
            raise DataError(
                f"{store.path}: no single dimension of {part} among "
                f"{listed([f'{d} ({n})' for d, n in _sizes(store, variables).items()], 12)}: "
                f"there is {what}. Fields need a grid of rows and columns and times with units "
                "such as 'hours since 1900-01-01'; regrid meshes and reduced Gaussian grids to a "
                "regular grid first, and of several time dimensions choose an entry with "
                "domain.select"
            )
    return Dims(times[0], found["latitude"][0], found["longitude"][0])


def _sizes(store: Readable, names: Sequence[str]) -> dict[str, int]:
    return {
        dim: size
        for name in names
        for dim, size in zip(store.variables[name].dims, store.variables[name].shape, strict=True)
    }


def coordinate_of(store: Readable, dim: str) -> Array:
    """Values of a dimension's coordinate; 0, 1, 2, ... where it has none."""
    return coordinate(store, dim, store.coords.sizes.get(dim, 0))


def level_dims(store: Readable, dims: Dims, names: Mapping[str, Any]) -> Iterator[str]:
    """Level dimensions of the variables."""
    for name in names:
        if name in store.variables:
            for dim in store.variables[name].dims:
                if dim not in dims.all and dimension_kind(store, dim)[0] == "level":
                    yield dim


def cell_positions(store: Readable, dims: Dims) -> tuple[Array, Array] | None:
    """Latitudes (y, 1) or (y, x), and longitudes (1, x) or (y, x), in degrees."""
    rows, columns = degrees_of(store, dims.y, "lat"), degrees_of(store, dims.x, "lon")
    if rows is not None and columns is not None:
        return rows[:, None], columns[None]
    beside: dict[str, Array] = {}
    for c in store.coords.variables.values():
        name = str(c.attrs.get("standard_name") or c.attrs.get("units", ""))
        for word, mark in (("latitude", "north"), ("longitude", "east")):
            if c.dims == (dims.y, dims.x) and (name == word or mark in name):
                beside[word] = np.asarray(c.values, np.float64)
    return (beside["latitude"], beside["longitude"]) if len(beside) == 2 else None


def degrees_of(store: Readable, dim: str, start: str) -> Array | None:
    """A coordinate of latitude or longitude in degrees; None where it is something else."""
    values = coordinate_of(store, dim)
    if dim not in store.coords.variables or values.dtype.kind not in "iuf":
        return None
    attrs = store.coords[dim].attrs
    name, units = str(attrs.get("standard_name", "")), str(attrs.get("units", "degree"))
    known = name.startswith(start) or (not name and dim.lower().startswith(start))
    return values.astype(np.float64) if known and units.startswith("degree") else None


def covers_globe(store: Readable, dim: str) -> bool:
    """Whether columns cover all longitudes once, also without units, as in WeatherBench 2."""
    columns = degrees_of(store, dim, "lon")
    if columns is None:
        return is_periodic(store, dim) is True
    return is_evenly_spaced(columns) and bool(abs(longitude_widths(columns).sum() - CIRCLE) < 1e-3)


def grid_areas(store: Readable, dims: Dims) -> Array | None:
    """Areas of all cells, (y, x); None where rows are not latitudes."""
    rows, columns = degrees_of(store, dims.y, "lat"), degrees_of(store, dims.x, "lon")
    return None if rows is None or columns is None else cell_areas(rows, columns)
