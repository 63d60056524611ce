"""Small copies of public weather stores: names, order, chunks, attributes and fill values of

- WeatherBench 2, ERA5 at 64 x 32: Zarr v2 with consolidated metadata, dimensions (time, level,
  longitude, latitude) as its regridding leaves them (google-research/weatherbench2,
  scripts/regrid.py), latitude from -87.1875 up, chunks of 100 steps and all of 13 levels, Blosc
  with LZ4; longitude and latitude without attributes, since the regridding makes them anew.
  Variables and their attributes are those of the data guide (weatherbench2.readthedocs.io).
- ARCO-ERA5, 1959-2022-full_37-1h-0p25deg-chunk-1.zarr-v2: hourly, (time, level, latitude,
  longitude), latitude from 90 down with both poles, 37 levels, chunks of one step
  (google-research/arco-era5, src/netcdf_to_zarr.py). Here on a grid of 10 degrees.
- anemoi-datasets: data (time, variable, ensemble, cell) in chunks of one date, latitudes,
  longitudes, dates, statistics along variable, attributes (ecmwf/anemoi-datasets,
  src/anemoi/datasets/create/fields/init.py). A missing date is present and NaN.

Fields are smooth noise that is advected eastwards and decorrelates within a day, on top of a mean
that falls towards the poles. What the sources do not specify, such as the time unit, is as xarray
writes it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numcodecs import Blosc

from jitkit.utils.types import Array

WEATHERBENCH = "datasets/era5/1959-2022-6h-64x32_equiangular_conservative.zarr"
ARCO = "ar/1959-2022-full_37-1h-0p25deg-chunk-1.zarr-v2"
ANEMOI = "aifs-ea-an-oper-0001-mars-20p0-2020-2020-6h-v1.zarr"
BUCKETS = {WEATHERBENCH: "weatherbench2", ARCO: "gcp-public-data-arco-era5", ANEMOI: "anemoi"}

LEVELS_13 = (50, 100, 150, 200, 250, 300, 400, 500, 600, 700, 850, 925, 1000)
LEVELS_37 = tuple(
    int(p)
    for p in "1 2 3 5 7 10 20 30 50 70 100 125 150 175 200 225 250 300 350 400 450 500 550 600 650 "
    "700 750 775 800 825 850 875 900 925 950 975 1000".split()
)
ATTRS = {
    "2m_temperature": {"long_name": "2 metre temperature", "short_name": "t2m", "units": "K"},
    "10m_u_component_of_wind": {
        "long_name": "10 metre U wind component",
        "short_name": "u10",
        "units": "m s**-1",
    },
    "sea_surface_temperature": {
        "long_name": "Sea surface temperature",
        "short_name": "sst",
        "units": "K",
    },
    "total_precipitation_6hr": {
        "long_name": "Total precipitation",
        "short_name": "tp",
        "units": "m",
    },
    "total_precipitation": {"long_name": "Total precipitation", "short_name": "tp", "units": "m"},
    "temperature": {
        "long_name": "Temperature",
        "short_name": "t",
        "standard_name": "air_temperature",
        "units": "K",
    },
    "geopotential": {
        "long_name": "Geopotential",
        "short_name": "z",
        "standard_name": "geopotential",
        "units": "m**2 s**-2",
    },
    "geopotential_at_surface": {
        "long_name": "Geopotential",
        "short_name": "z",
        "standard_name": "geopotential",
        "units": "m**2 s**-2",
    },
    "land_sea_mask": {
        "long_name": "Land-sea mask",
        "short_name": "lsm",
        "standard_name": "land_binary_mask",
        "units": "(0 - 1)",
    },
}
ALIKE = {
    "10m_v_component_of_wind": "10m_u_component_of_wind",
    "mean_sea_level_pressure": "2m_temperature",
    "u_component_of_wind": "temperature",
    "v_component_of_wind": "temperature",
    "vertical_velocity": "temperature",
    "specific_humidity": "temperature",
}
"""Variables that tell their names alone, and whose numbers they have."""
ATTRS |= {name: {"long_name": name.replace("_", " ")} for name in ALIKE}


def moving(steps: int, latitude: Array, longitude: Array, *, hours: float, seed: int) -> Array:
    """Smooth noise of unit variance that drifts 10 degrees in 6 hours and decays within a day,
    (steps, latitude, longitude)."""
    rng = np.random.default_rng(seed)
    waves = np.arange(1, 5)
    keep = np.exp(-hours / 24)
    drift = np.exp(-1j * np.deg2rad(waves * hours * 10 / 6))
    state = rng.standard_normal((2, 4, 3)) @ np.array([[1], [1j], [0]])
    found = []
    for _ in range(steps):
        fresh = rng.standard_normal((2, 4, 3)) @ np.array([[1], [1j], [0]])
        state = keep * drift[:, None] * state + np.sqrt(1 - keep**2) * fresh
        found.append(state[..., 0])
    circle = np.exp(1j * np.outer(waves, np.deg2rad(longitude)))
    north = np.stack([np.cos(np.deg2rad(latitude)), np.sin(np.deg2rad(2 * latitude))])
    field = np.einsum("tnw,wx,ny->tyx", np.array(found), circle, north).real
    return np.asarray(field / 2, np.float32)


def fields(
    time: Array, latitude: Array, longitude: Array, levels: tuple[int, ...]
) -> dict[str, tuple[tuple[str, ...], Array]]:
    """Variables in the order (time, level, latitude, longitude)."""
    hours = float((time[1] - time[0]) / np.timedelta64(1, "h"))
    surface = ("time", "latitude", "longitude")
    warm = 250 + 45 * np.cos(np.deg2rad(latitude))[:, None] + 0 * longitude

    def noise(seed: int) -> Array:
        return moving(len(time), latitude, longitude, hours=hours, seed=seed)

    land = ((longitude > 20) & (longitude < 130) & (abs(latitude)[:, None] < 60)).astype("f4")
    sst = np.where(land > 0.5, np.nan, 0.9 * warm + 30 + noise(2)).astype("f4")
    up = np.asarray(levels, np.float64) / 1000
    temperature = warm * up[:, None, None] ** 0.19 + 3 * noise(3)[:, None]
    geopotential = -70_000 * np.log(up)[:, None, None] + 500 * noise(3)[:, None]
    rain = (np.maximum(0, noise(4)) ** 3 / 1000).astype("f4")
    profile = ("time", "level", "latitude", "longitude")
    return {
        "2m_temperature": (surface, (warm + 4 * noise(0)).astype("f4")),
        "10m_u_component_of_wind": (surface, 6 * noise(1)),
        "sea_surface_temperature": (surface, sst),
        "temperature": (profile, temperature.astype("f4")),
        "geopotential": (profile, geopotential.astype("f4")),
        "land_sea_mask": (surface[1:], land),
        "geopotential_at_surface": (surface[1:], (9.8 * 1000 * land).astype("f4")),
        "total_precipitation_6hr" if hours > 1 else "total_precipitation": (surface, rain),
    }


def times(start: str, steps: int, hours: int) -> Array:
    return np.datetime64(start, "ns") + np.arange(steps) * np.timedelta64(hours, "h")


def write(
    folder: Path, data: dict[str, tuple[tuple[str, ...], Array]], coords: Any, steps: int
) -> None:
    """Zarr v2 as xarray writes it, in chunks of so many steps."""
    made = xr.Dataset({name: (*v, ATTRS[name]) for name, v in data.items()}, coords)
    encoding: dict[str, Any] = {
        str(name): {
            "chunks": tuple(steps if dim == "time" else n for dim, n in v.sizes.items()),
            "compressors": (Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE),),
            "_FillValue": np.float32(np.nan),
        }
        for name, v in made.data_vars.items()
    }
    encoding["time"] = {"units": "hours since 1959-01-01", "dtype": "i8"}
    made.to_zarr(folder, zarr_format=2, consolidated=True, encoding=encoding)


def weatherbench2(
    folder: Path,
    steps: int = 120,
    *,
    upside_down: bool = False,
    hole: int = 0,
    every_variable: bool = False,
    start: str = "2015-12-10",
) -> Path:
    """ERA5 of WeatherBench 2 at 64 x 32.

    Args:
        folder: of the bucket.
        steps: of 6 hours.
        upside_down: latitude from 87.1875 down, as other regriddings have it.
        hole: in days, after the tenth day.
        every_variable: with those that bundled recipes read, made of the others.
        start: the first time.
    """
    latitude = -90 + (np.arange(32) + 0.5) * 180 / 32
    latitude, longitude = latitude[:: -1 if upside_down else 1], np.arange(64) * 360 / 64
    time = times(start, steps, 6)
    found = fields(time, latitude, longitude, LEVELS_13)
    if every_variable:
        found |= {name: found[like] for name, like in ALIKE.items()}
    turned = {
        name: ((*dims[:-2], "longitude", "latitude"), values.swapaxes(-1, -2))
        for name, (dims, values) in found.items()
    }
    coords = {
        "time": time,
        "level": np.array(LEVELS_13),
        "latitude": latitude,
        "longitude": longitude,
    }
    later = np.arange(steps) >= 40
    coords["time"] = time + later * np.timedelta64(hole, "D")
    write(folder / WEATHERBENCH, turned, coords, 100)
    return folder / WEATHERBENCH


def arco(folder: Path, steps: int = 120) -> Path:
    """ARCO-ERA5, hourly from 2016-01-01 on, on a grid of 10 degrees in place of 0.25."""
    latitude = np.arange(90, -91, -10, dtype="f4")
    longitude = np.arange(0, 360, 10, dtype="f4")
    time = times("2016-01-01", steps, 1)
    degrees = {
        "latitude": ("latitude", latitude, {"long_name": "latitude", "units": "degrees_north"}),
        "longitude": ("longitude", longitude, {"long_name": "longitude", "units": "degrees_east"}),
    }
    found = fields(time, latitude, longitude, LEVELS_37)
    del found["geopotential"]
    write(folder / ARCO, found, {"time": time, "level": np.array(LEVELS_37), **degrees}, 1)
    return folder / ARCO


def anemoi(folder: Path, steps: int = 120, *, reduced: bool = False) -> Path:
    """A dataset of anemoi-datasets, 6-hourly from 2020-01-01 on, on a grid of 20 degrees.

    Args:
        folder: of the bucket.
        steps: of which that after a quarter is missing.
        reduced: rows of different length, as reduced Gaussian grids have.
    """
    latitude, longitude = np.arange(80, -81, -20.0), np.arange(0, 360, 20.0)
    time = times("2020-01-01", steps, 6)
    found = fields(time, latitude, longitude, (500, 850))
    parts = {
        "2t": found["2m_temperature"][1],
        "10u": found["10m_u_component_of_wind"][1],
        "t_500": found["temperature"][1][:, 0],
        "t_850": found["temperature"][1][:, 1],
        "lsm": np.broadcast_to(found["land_sea_mask"][1], (steps, 9, 18)),
        "tp": found["total_precipitation_6hr"][1],
    }
    data = np.stack([values.reshape(steps, -1) for values in parts.values()], axis=1)[:, :, None]
    lost = steps // 4
    data[lost] = np.nan
    rows, columns = (g.ravel() for g in np.meshgrid(latitude, longitude, indexing="ij"))
    if reduced:
        kept = (abs(rows) < 70) | (columns % 40 == 0)
        rows, columns, data = rows[kept], columns[kept], data[..., kept]
    root = zarr.open_group(folder / ANEMOI, mode="w", zarr_format=2)
    seen = data[np.arange(steps) != lost].astype("f8")
    arrays: dict[str, tuple[tuple[str, ...], Array]] = {
        "data": (("time", "variable", "ensemble", "cell"), data),
        "dates": (("time",), time.astype("M8[s]")),
        "latitudes": (("cell",), rows),
        "longitudes": (("cell",), columns),
        "mean": (("variable",), seen.mean(axis=(0, 2, 3))),
        "stdev": (("variable",), seen.std(axis=(0, 2, 3))),
        "minimum": (("variable",), seen.min(axis=(0, 2, 3))),
        "maximum": (("variable",), seen.max(axis=(0, 2, 3))),
    }
    for name, (dims, values) in arrays.items():
        array = root.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(1, *values.shape[1:]) if name == "data" else values.shape,
            fill_value=np.nan if values.dtype.kind == "f" else None,
            attributes={"_ARRAY_DIMENSIONS": list(dims)},
        )
        array[:] = values
    root.attrs.update(
        {
            "variables": list(parts),
            "dates_in_use": steps - 1,
            "missing_dates": [str(time[lost].astype("M8[s]"))],
            "start_date": str(time[0].astype("M8[s]")),
            "end_date": str(time[-1].astype("M8[s]")),
            "frequency": "6h",
            "ensemble_dimension": 1,
            "flatten_grid": True,
            "field_shape": [9, 18] if not reduced else [len(rows)],
            "resolution": "20.0",
            "variables_with_nans": [],
            "variables_metadata": {"2t": {"mars": {"param": "2t", "levtype": "sfc"}}},
            "version": "0.30",
        }
    )
    zarr.consolidate_metadata(folder / ANEMOI, zarr_format=2)
    return folder / ANEMOI
