"""Forecasts in a file, as a system to score: Zarr or NetCDF by the names of WeatherBench 2.

    VARIABLE (time, number, prediction_timedelta, [level,] latitude, longitude)

which is what `jitkit forecast` writes. Without ``number`` there is one member. Dimensions are found
by name and may lie in any order; the last two have the names of the truth's, and cells are found by
their coordinates, which may run either way.
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
CLOSE = 1e-2  # of the truth's smallest step that a coordinate may be off


class Stepped(StateSeries, Protocol):
    """States of known step."""

    @property
    def step_seconds(self) -> float:
        """Length of a lead."""


class ForecastFile:
    """The forecasts of a file that the states can be held against.

    Attributes:
        members: of each ensemble.
        starts: positions of the initial times, in order.
        leads: steps ahead, rising; leads of the file that are no whole steps are left out.
    """

    def __init__(
        self, path: Path, states: Stepped, name: str, grid: Mapping[str, Array | None]
    ) -> None:
        """Open a file.

        Args:
            path: of the store or file.
            states: the truth.
            name: of the system.
            grid: names of the truth's dimensions X1..Xn, and its coordinates along each, None
                where it has none.

        Raises:
            DataError: it is not there, lacks a channel, has other dimensions or lies on another
                grid, or has no time or lead that the states have.
        """
        self.name, self._path, self._grid = name, path, list(grid)
        self._data = _opened(path)
        self._channels = [self._find(channel) for channel in states.channels]
        for variable, level in self._channels:
            self._check_dims(variable, level)
        placed = {axis: self._placed(*each) for axis, each in enumerate(grid.items(), 1)}
        self._cells = {axis: cells for axis, cells in placed.items() if cells is not None}
        self.members = self._data.sizes.get(NUMBER, 1)
        self._row = self._starts(states)
        self._column = self._leads(states.step_seconds)
        self.starts, self.leads = list(self._row), list(self._column)

    def forecast(self, start: int, steps: int) -> Array:
        """(members, C, X1..Xn), as `System`."""
        at = {TIME: self._row[start], LEAD: self._column[steps]}
        found = [self._read(name, at | level) for name, level in self._channels]
        return np.stack(found, axis=1)

    def _read(self, name: str, at: dict[str, int]) -> Array:
        """One channel, (members, X1..Xn)."""
        found = self._data[name].isel(at)
        members = [NUMBER] if NUMBER in found.dims else []
        values = np.asarray(found.transpose(*members, *self._grid).values, np.float32)
        values = values if members else values[None]
        for axis, cells in self._cells.items():
            values = values.take(cells, axis=axis)
        return values

    def _find(self, channel: str) -> tuple[str, dict[str, int]]:
        """Variable of a channel, and where its level lies."""
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
        """That a variable has the dimensions of a forecast and no others."""
        needed, found = [TIME, LEAD, *self._grid], list(map(str, self._data[name].dims))
        if set(found) - set(level) - {NUMBER} != set(needed):
            raise DataError(
                f"{self._path}: {name} lies on {listed(found)}; it should on {listed(needed)} and, "
                f"for ensembles, {NUMBER}, in any order"
            )

    def _placed(self, dim: str, own: Array | None) -> Array | None:
        """Where the file has the truth's cells along a dimension; None where as the truth does."""
        size = self._data.sizes[dim]
        if own is None or dim not in self._data.coords:
            return None
        theirs = np.asarray(self._data[dim].values, float)
        cells = np.abs(theirs[None] - own[:, None]).argmin(axis=1)
        step = np.abs(np.diff(own)).min() if len(own) > 1 else 1.0
        if size != len(own) or np.abs(theirs[cells] - own).max() > CLOSE * step:
            raise DataError(
                f"{self._path}: its {dim} is not that of the truth "
                f"({size} from {theirs[0]:g} to {theirs[-1]:g}, and {len(own)} from "
                f"{own[0]:g} to {own[-1]:g}); put both on one grid first"
            )
        return None if (cells == np.arange(size)).all() else cells

    def _starts(self, states: Stepped) -> dict[int, int]:
        """Rows of the file by the positions of their times."""
        known = {_plain(time): i for i, time in enumerate(states.times)}
        times = [_plain(time) for time in self._data[TIME].values]
        found = {known[time]: row for row, time in enumerate(times) if time in known}
        if not found:
            raise DataError(
                f"{self._path}: the truth has none of its {len(times)} initial times "
                f"({times[0]} to {times[-1]})"
            )
        return dict(sorted(found.items()))

    def _leads(self, step_seconds: float) -> dict[int, int]:
        """Columns of the file by steps ahead."""
        ahead = np.asarray(self._data[LEAD].values)
        seconds = (
            ahead / np.timedelta64(1, "s")
            if ahead.dtype.kind == "m"
            else ahead.astype(float) * 3600
        )
        steps = seconds / step_seconds
        found = {round(s): column for column, s in enumerate(steps) if s >= 1 and _is_whole(s)}
        if not found:
            raise DataError(f"{self._path}: none of its leads is a multiple of the truth's step")
        return dict(sorted(found.items()))


def _opened(path: Path) -> xarray.Dataset:
    import xarray

    if not path.exists():
        raise DataError(
            f"no file of forecasts at {path}; jitkit forecast RUN --out {path} makes it"
        )
    try:
        if path.is_dir():
            found = xarray.open_zarr(path, chunks=None, decode_timedelta=True)
        else:
            found = xarray.open_dataset(path, decode_timedelta=True)
    except OSError as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be read as a Zarr store or NetCDF file: {why}") from error
    except ValueError as error:  # xarray lists every engine that there might be
        raise DataError(
            f"{path} cannot be read as forecasts; it should be a Zarr store or a NetCDF file"
        ) from error
    lacking = [dim for dim in (TIME, LEAD) if dim not in found.dims]
    if lacking:
        raise DataError(
            f"{path}: no dimension {listed(lacking)}; forecasts lie on {TIME}, {LEAD} and, for "
            f"ensembles, {NUMBER}"
        )
    return found


def _plain(time: Any) -> str:
    """A time as text, the same for numpy's and cftime's."""
    text = str(time.astype("M8[s]")) if isinstance(time, np.datetime64) else time.isoformat()
    return text[:19]


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-6
