"""Forecasts from Zarr or NetCDF files with WeatherBench 2 names, as a system to verify.

    VARIABLE (time, number, prediction_timedelta, [level,] latitude, longitude)

as written by `jitkit forecast`. Without ``number`` there is one member. Dimensions are identified
by name, in any order; the last two have the names of the verifying analysis's dimensions. Cells
are matched by coordinates, ascending or descending.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jitkit.errors import DataError, listed
from jitkit.metrics.forecasts.climatology import StateSeries
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray


TIME, NUMBER, LEAD = "time", "number", "prediction_timedelta"
TOLERANCE = 1e-2  # of coordinates, relative to the smallest step of the analysis


class SteppedStateSeries(StateSeries, Protocol):
    """A state series with a constant time step."""

    @property
    def step_seconds(self) -> float:
        """Length of a forecast step in seconds."""


class ForecastFile:
    """The forecasts of a file that can be verified against a state series.

    Attributes:
        members: number of ensemble members.
        starts: positions of the initial times, in order.
        leads: in steps, ascending; leads of the file that are not whole steps are left out.
    """

    def __init__(
        self, path: Path, states: SteppedStateSeries, name: str, grid: Mapping[str, Array | None]
    ) -> None:
        """Open a file.

        Args:
            path: path of the store or file.
            states: the verifying analyses.
            name: name of the system.
            grid: dimensions X1..Xn of the analysis with their coordinates, None without.

        Raises:
            DataError: no such file, a missing channel, other dimensions, another grid, or no time
                or lead in common with the states.
        """
        self.name, self._path, self._grid = name, path, list(grid)
        self._data = _open(path)
        self._channels = [self._find(channel) for channel in states.channels]
        for variable, level in self._channels:
            self._check_dims(variable, level)
        cells = {axis: self._match_cells(*each) for axis, each in enumerate(grid.items(), 1)}
        self._cells = {axis: indices for axis, indices in cells.items() if indices is not None}
        self.members = self._data.sizes.get(NUMBER, 1)
        self._row = self._starts(states)
        self._column = self._leads(states.step_seconds)
        self.starts, self.leads = list(self._row), list(self._column)

    def forecast(self, start: int, steps: int) -> Array:
        """(members, C, X1..Xn), as `ForecastSystem`."""
        at = {TIME: self._row[start], LEAD: self._column[steps]}
        fields = [self._read(name, at | level) for name, level in self._channels]
        return np.stack(fields, axis=1)

    def _read(self, name: str, at: dict[str, int]) -> Array:
        """One channel, (members, X1..Xn)."""
        data = self._data[name].isel(at)
        members = [NUMBER] if NUMBER in data.dims else []
        values = np.asarray(data.transpose(*members, *self._grid).values, np.float32)
        values = values if members else values[None]
        for axis, cells in self._cells.items():
            values = values.take(cells, axis=axis)
        return values

    def _find(self, channel: str) -> tuple[str, dict[str, int]]:
        """Variable of a channel, and the index of its level."""
        if channel in self._data:
            return channel, {}
        name, _, level = channel.rpartition(".")
        if name in self._data:
            for dim in map(str, self._data[name].dims):
                if dim not in (TIME, NUMBER, LEAD, *self._grid) and dim in self._data.coords:
                    texts = [f"{value:g}" for value in self._data[dim].values.astype(float)]
                    if level in texts:
                        return name, {dim: texts.index(level)}
        raise DataError(
            f"{self._path}: no forecast of {channel}; it has {listed(map(str, self._data))}"
        )

    def _check_dims(self, name: str, level: Mapping[str, int]) -> None:
        """Check that a variable has the dimensions of a forecast and no others."""
        needed, dims = [TIME, LEAD, *self._grid], list(map(str, self._data[name].dims))
        if set(dims) - set(level) - {NUMBER} != set(needed):
            raise DataError(
                f"{self._path}: {name} has dimensions {listed(dims)}; it needs {listed(needed)} "
                f"and, for ensembles, {NUMBER}, in any order"
            )

    def _match_cells(self, dim: str, own: Array | None) -> Array | None:
        """Indices in the file of the analysis's cells along a dimension; None if unchanged."""
        size = self._data.sizes[dim]
        if own is None or dim not in self._data.coords:
            return None
        in_file = np.asarray(self._data[dim].values, float)
        cells = np.abs(in_file[None] - own[:, None]).argmin(axis=1)
        step = np.abs(np.diff(own)).min() if len(own) > 1 else 1.0
        if size != len(own) or np.abs(in_file[cells] - own).max() > TOLERANCE * step:
            raise DataError(
                f"{self._path}: its {dim} differs from that of the verifying analysis "
                f"({size} from {in_file[0]:g} to {in_file[-1]:g}, and {len(own)} from "
                f"{own[0]:g} to {own[-1]:g}); regrid to the same grid first"
            )
        return None if (cells == np.arange(size)).all() else cells

    def _starts(self, states: SteppedStateSeries) -> dict[int, int]:
        """Rows of the file by positions of their initial times."""
        known = {_plain(time): i for i, time in enumerate(states.times)}
        times = [_plain(time) for time in self._data[TIME].values]
        rows = {known[time]: row for row, time in enumerate(times) if time in known}
        if not rows:
            raise DataError(
                f"{self._path}: the verifying data have none of its {len(times)} initial times "
                f"({times[0]} to {times[-1]})"
            )
        return dict(sorted(rows.items()))

    def _leads(self, step_seconds: float) -> dict[int, int]:
        """Columns of the file by lead time in steps."""
        ahead = np.asarray(self._data[LEAD].values)
        seconds = (
            ahead / np.timedelta64(1, "s")
            if ahead.dtype.kind == "m"
            else ahead.astype(float) * 3600
        )
        steps = seconds / step_seconds
        columns = {round(s): column for column, s in enumerate(steps) if s >= 1 and _is_whole(s)}
        if not columns:
            raise DataError(f"{self._path}: none of its leads is a multiple of the data's step")
        return dict(sorted(columns.items()))


def _open(path: Path) -> xarray.Dataset:
    import xarray

    if not path.exists():
        raise DataError(f"no forecast file at {path}; jitkit forecast RUN --out {path} writes it")
    try:
        if path.is_dir():
            data = xarray.open_zarr(path, chunks=None, decode_timedelta=True)
        else:
            data = xarray.open_dataset(path, decode_timedelta=True)
    except OSError as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be read as a Zarr store or NetCDF file: {why}") from error
    except ValueError as error:  # xarray's text lists all engines
        raise DataError(
            f"{path} cannot be read as forecasts; it should be a Zarr store or a NetCDF file"
        ) from error
    missing = [dim for dim in (TIME, LEAD) if dim not in data.dims]
    if missing:
        raise DataError(
            f"{path}: no dimension {listed(missing)}; forecasts have {TIME}, {LEAD} and, for "
            f"ensembles, {NUMBER}"
        )
    return data


def _plain(time: Any) -> str:
    """A time as text, the same for datetime64 and cftime."""
    text = str(time.astype("M8[s]")) if isinstance(time, np.datetime64) else time.isoformat()
    return text[:19]


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6
