"""Stores of anemoi-datasets, whose grid is one axis, read as variables on latitude and longitude.

Their layout (ecmwf/anemoi-datasets): an array ``data`` (time, variable, ensemble, cell), the
cells' ``latitudes`` and ``longitudes``, ``dates``, and the attributes ``variables``,
``field_shape`` and ``missing_dates``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError, listed, nearest
from jitkit.stores.variables import VariableInfo
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

    from jitkit.stores.chunks import Stats
    from jitkit.stores.store import Readable


DATA, DATES, LATITUDES, LONGITUDES = "data", "dates", "latitudes", "longitudes"
AXES = (
    ("latitude", "degrees_north"),
    ("longitude", "degrees_east"),
)


def is_anemoi(store: Readable) -> bool:
    """Whether a store has the layout of anemoi-datasets."""
    data = store.variables.get(DATA)
    names = store.attrs.get("variables")
    return data is not None and len(data.dims) == 4 and isinstance(names, list)


class Anemoi:
    """A store of anemoi-datasets with one variable for each parameter; reads like a `Store`.

    Attributes:
        store: as it is on disk.
        path, attrs: of the store.
        variables: (time, ensemble, latitude, longitude); ensemble only with several members.
        time: name of the time dimension.
        missing: True at dates without data, (time,) bool.
    """

    def __init__(self, store: Readable) -> None:
        """Read the grid and dates of a store.

        Raises:
            DataError: its cells are no regular grid of rows and columns.
        """
        self.store, self.path, self.attrs = store, store.path, store.attrs
        data = store.variables[DATA]
        self.time, self._variable, self._ensemble, self._cell = data.dims
        self._names = [str(name) for name in store.attrs["variables"]]
        self._rows, self._columns = self._grid()
        self._dates = self._times()
        absent = np.array(store.attrs.get("missing_dates", []), "M8[s]")
        self.missing = np.isin(self._dates.astype("M8[s]"), absent)
        self.variables: Mapping[str, VariableInfo] = dict.fromkeys(
            self._names, self._described(data)
        )

    def _grid(self) -> tuple[Array, Array]:
        """Latitudes of the rows and longitudes of the columns."""
        positions = [np.asarray(self.store.read(n), np.float64) for n in (LATITUDES, LONGITUDES)]
        latitudes, longitudes = positions
        given = self.store.attrs.get("field_shape")
        row_ends = np.flatnonzero(np.diff(latitudes)) + 1
        width = int(row_ends[0]) if len(row_ends) else len(latitudes)
        shape = tuple(given) if given and len(given) == 2 else (len(latitudes) // width, width)
        if shape[0] * shape[1] == len(latitudes):
            latitudes, longitudes = (x.reshape(shape) for x in positions)
            if not np.ptp(latitudes, axis=1).any() and not np.ptp(longitudes, axis=0).any():
                return latitudes[:, 0], longitudes[0]
        raise DataError(
            f"{self.path}: {len(positions[0])} cells that are no regular grid of latitudes and "
            f"longitudes: {len(row_ends) + 1} rows, the first of {width} cells. Reduced Gaussian "
            "grids and meshes are not read; make the dataset on a regular grid (in an "
            "anemoi-datasets recipe: regrid to [1.5, 1.5], or request the grid from MARS)"
        )

    def _times(self) -> Array:
        if DATES in self.store.coords.variables:
            return np.asarray(self.store.coords[DATES].values).astype("M8[ns]")
        return np.asarray(self.store.read_raw(DATES)).astype("M8[ns]")

    def _described(self, data: VariableInfo) -> VariableInfo:
        sizes = dict(zip(data.dims, data.shape, strict=True))
        chunks = dict(zip(data.dims, data.chunks, strict=True))
        lead = [self.time] + [self._ensemble] * (sizes[self._ensemble] > 1)
        grid = (len(self._rows), len(self._columns))
        return replace(
            data,
            dims=(*lead, AXES[0][0], AXES[1][0]),
            shape=(*(sizes[dim] for dim in lead), *grid),
            chunks=(*(chunks[dim] for dim in lead), *grid),
            attrs={},
        )

    @property
    def coords(self) -> xarray.Dataset:
        """Time, latitude and longitude, with their CF attributes."""
        import xarray

        found: dict[str, Any] = {self.time: (self.time, self._dates)}
        for (name, units), values in zip(AXES, (self._rows, self._columns), strict=True):
            found[name] = (name, values, {"standard_name": name, "units": units})
        return xarray.Dataset(coords=found)

    @property
    def stats(self) -> Stats:
        """Read statistics of the store."""
        return self.store.stats

    def read(self, variable: str, where: Mapping[str, int | slice] | None = None) -> Array:
        """As `Store.read`."""
        if variable not in self.variables:
            raise DataError(
                f"{self.path}: no variable {variable!r}; it has {listed(self._names, 20)}"
                f"{nearest(variable, self._names)}"
            )
        cuts = dict(where or {})
        grid = tuple(cuts.pop(name, slice(None)) for name, _ in AXES)
        if self._ensemble not in self.variables[variable].dims:
            cuts[self._ensemble] = 0
        values = self.store.read(DATA, {**cuts, self._variable: self._names.index(variable)})
        shape = (*values.shape[:-1], len(self._rows), len(self._columns))
        return values.reshape(shape)[(..., *grid)]

    def read_raw(self, variable: str, where: Mapping[str, int | slice] | None = None) -> Array:
        """As `read`: all variables are numeric."""
        return self.read(variable, where)

    def starts(self, variable: str, dim: str) -> Array:
        """As `Store.starts`."""
        sizes = dict(zip((name for name, _ in AXES), (self._rows, self._columns), strict=True))
        return np.array([0, len(sizes[dim])]) if dim in sizes else self.store.starts(DATA, dim)

    def fingerprint(self, variables: Any = None, *, times: bool = True) -> str:
        """As `Store.fingerprint`, of all variables, as they share one array."""
        return self.store.fingerprint([DATA], times=times)
