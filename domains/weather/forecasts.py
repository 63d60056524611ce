"""Forecast files: a Zarr store in the layout of WeatherBench 2, written state by state.

    VARIABLE (time, number, prediction_timedelta, [level,] latitude, longitude)

time is the initial time, number the member, prediction_timedelta the lead time; valid_time
(time, prediction_timedelta) is their sum. A chunk is one state, so each chunk is written once.
Zarr version 2, which every Zarr reader supports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays import Sample
from jitkit.utils.console import warn
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray


TIME, NUMBER, LEAD, VALID = "time", "number", "prediction_timedelta", "valid_time"
RECORD = "jitkit_forecast"  # global attribute
MANY_FILES = 100_000


@dataclass(frozen=True, eq=False)
class ForecastField:
    """A variable of the file.

    Attributes:
        name: as in the data.
        channels: indices of its channels in an item.
        levels: their indices along the file's level dimension; None without levels.
        attrs: units and other attributes.
    """

    name: str
    channels: Sequence[int]
    levels: Sequence[int] | None
    attrs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ForecastFrame:
    """Variables, grid and coordinates of a forecast file.

    Attributes:
        fields: its variables.
        grid: dimensions (y, x) and their sizes.
        level: name, values and attributes of the level dimension; None without levels.
        coords: further coordinates (dims, values, attrs) from the output metadata of `arrays`.
        attrs: global attributes.
    """

    fields: Sequence[ForecastField]
    grid: Mapping[str, int]
    level: tuple[str, Array, Mapping[str, Any]] | None
    coords: Mapping[str, Any]
    attrs: Mapping[str, Any]


class Forecasts:
    """A forecast file, created if missing, with a warning if it has very many chunks."""

    def __init__(
        self,
        path: Path,
        frame: ForecastFrame,
        starts: Mapping[str, Any],
        valid: Array,
        leads: Array,
        members: int,
        record: Mapping[str, Any],
    ) -> None:
        """Open a file or create it.

        Args:
            path: folder of the store.
            frame: variables, grid and coordinates.
            starts: initial times by name.
            valid: valid times, (starts, leads).
            leads: lead times in seconds, (leads,).
            members: ensemble members of each initial time.
            record: how the forecasts are made; kept as an attribute.
        """
        self.path, self._frame, self._record = path, frame, record
        self._row = {name: row for row, name in enumerate(starts)}
        self._shape = (len(starts), members, len(leads))
        if not (path / ".zgroup").is_file():
            self._make(list(starts.values()), valid, leads)

    def write(self, start: str, member: int, step: int, state: Sample) -> None:
        """Write one state."""
        for field in self._frame.fields:
            self._group[field.name][self._row[start], member, step - 1] = self._part(field, state)

    def read(self, start: str, member: int, step: int) -> Sample:
        """Read one state."""
        count = sum(len(field.channels) for field in self._frame.fields)
        values = np.empty((count, *self._frame.grid.values()), np.float32)
        for field in self._frame.fields:
            found = self._group[field.name][self._row[start], member, step - 1]
            rows = found[None] if field.levels is None else found[list(field.levels)]
            values[list(field.channels)] = rows
        return Sample(values)

    def finish(self) -> None:
        """Consolidate the metadata."""
        import zarr

        zarr.consolidate_metadata(self.path, zarr_format=2)

    @cached_property
    def _group(self) -> Any:
        import zarr

        return zarr.open_group(self.path, mode="r+", zarr_format=2, use_consolidated=False)

    def _part(self, field: ForecastField, state: Sample) -> Array:
        values = state.values[list(field.channels)]
        if field.levels is None or self._frame.level is None:
            return values[0]
        whole = np.full((len(self._frame.level[1]), *values.shape[1:]), np.nan, np.float32)
        whole[list(field.levels)] = values
        return whole

    def _make(self, starts: list[Any], valid: Array, leads: Array) -> None:
        files = len(self._frame.fields) * math.prod(self._shape)
        if files > MANY_FILES:
            warn(
                f"the forecasts are {files:,} files, one for each variable, initial time, member "
                "and lead time; if the file system limits their number, forecast fewer initial "
                "times at once"
            )
        self._coords(starts, valid, leads).to_zarr(self.path, zarr_format=2, consolidated=False)
        level, grid = self._frame.level, self._frame.grid
        for field in self._frame.fields:
            over = {} if field.levels is None or level is None else {level[0]: len(level[1])}
            cell = {**over, **grid}
            self._group.create_array(
                field.name,
                shape=(*self._shape, *cell.values()),
                chunks=(1, 1, 1, *cell.values()),
                dtype="float32",
                fill_value=float("nan"),
                attributes={
                    **field.attrs,
                    "_ARRAY_DIMENSIONS": [TIME, NUMBER, LEAD, *cell],
                    "coordinates": VALID,
                },
            )

    def _coords(self, starts: list[Any], valid: Array, leads: Array) -> xarray.Dataset:
        import xarray

        frame = self._frame
        found: dict[str, Any] = {
            name: xarray.Variable(c["dims"], np.asarray(c["values"]), c["attrs"])
            for name, c in frame.coords.items()
            if set(c["dims"]) <= set(frame.grid)
            and name not in (TIME, NUMBER, LEAD, VALID)
            and c["dims"]
        }
        if frame.level is not None:
            name, values, attrs = frame.level
            found[name] = xarray.Variable((name,), values, dict(attrs))
        about = {"standard_name": "forecast_reference_time", "long_name": "initial time"}
        times = np.asarray(starts) if hasattr(starts[0], "calendar") else np.array(starts, "M8[ns]")
        units = {"units": _units(np.append(times, valid)), "dtype": "int64"}
        found[TIME] = xarray.Variable((TIME,), times, about, units)
        about = {"standard_name": "time", "long_name": "time of the state"}
        found[VALID] = xarray.Variable((TIME, LEAD), valid, about, units)
        about = {"standard_name": "realization", "long_name": "member"}
        found[NUMBER] = xarray.Variable((NUMBER,), np.arange(self._shape[1]), about)
        about = {"standard_name": "forecast_period", "long_name": "lead time"}
        coarsest = "seconds" if (leads % 3600).any() else "hours"
        apart = np.rint(leads).astype("m8[s]").astype("m8[ns]")
        found[LEAD] = xarray.Variable((LEAD,), apart, about, {"units": coarsest, "dtype": "int64"})
        origin = {"source": f"jitkit {version('jitkit')}", RECORD: json.dumps(self._record)}
        attrs = {"Conventions": "CF-1.8", **frame.attrs, **origin}
        return xarray.Dataset(coords=found, attrs=attrs)


def recorded(path: Path) -> Mapping[str, Any] | None:
    """How the forecasts of a store were made; None where there are none."""
    try:
        attrs = json.loads((path / ".zattrs").read_text(encoding="utf-8"))
        found: Mapping[str, Any] = json.loads(attrs[RECORD])
    except (OSError, ValueError, KeyError):
        return None
    return found


def _units(times: Array) -> str:
    """CF units in which all times are whole numbers."""
    if times.dtype.kind == "M":
        odd = (times - times.astype("M8[h]")).astype("m8[s]").astype(np.int64).any()
    else:
        odd = any(t.minute or t.second for t in times.ravel().tolist())
    return f"{'seconds' if odd else 'hours'} since 1900-01-01"
