"""Array files and domain sections shared by tests of the arrays adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from jitkit.domains.arrays.adapter import Arrays
from jitkit.domains.arrays.section import ArraysSection


def smooth(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Smooth noise of unit variance, different in every item."""
    x = np.random.default_rng(seed).standard_normal(shape)
    for axis in range(1, len(shape)):
        if shape[axis] > 2:
            x = x + np.roll(x, 1, axis=axis)
    return (x / x.std()).astype(np.float32)


def climate(steps: int = 40) -> xr.Dataset:
    """Six-hourly fields on a global 6 x 8 grid: two levels, land, a missing cell, a forcing."""
    time = np.datetime64("2000-02-27", "ns") + np.arange(steps) * np.timedelta64(6, "h")
    z = smooth(steps, 2, 6, 8) * [[[[300]], [[200]]]] + [[[[54000]], [[14000]]]]
    sst = 290 + 5 * smooth(steps, 6, 8, seed=1)
    sst[:, :2, 3:6] = np.nan  # land
    sst[3, 4, 4] = np.nan  # a cloud
    grid = ("latitude", "longitude")
    return xr.Dataset(
        {
            "z": (("time", "level", *grid), z.astype(np.float32), {"units": "m2 s-2"}),
            "t2m": (("time", *grid), 280 + 10 * smooth(steps, 6, 8, seed=2), {"units": "K"}),
            "sst": (("time", *grid), sst, {"units": "K", "long_name": "sea temperature"}),
            "rain": (("time", *grid), np.maximum(0, smooth(steps, 6, 8, seed=3)) ** 3 / 1000),
            "land": (grid, (np.isnan(sst[0])).astype(np.int8)),
            "co2": (("time",), 380 + np.arange(steps) / 10, {"units": "ppm"}),
            "regime": (("time",), np.array(["calm", "storm", "fog"])[np.arange(steps) % 3]),
            "phase": (("time",), (10 * (np.arange(steps) % 2)).astype(np.int16)),
        },
        {
            "time": time,
            "level": ("level", np.array([500, 850], np.int32), {"units": "hPa"}),
            "latitude": (
                "latitude",
                np.linspace(75, -75, 6, dtype=np.float32),
                {"units": "degrees_north"},
            ),
            "longitude": ("longitude", np.arange(0, 360, 45.0), {"units": "degrees_east"}),
            "height": ((), 2.0, {"units": "m"}),
        },
        {"title": "made up", "Conventions": "CF-1.8"},
    )


GLOBE = {"latitude": "line", "longitude": "circle"}


def as_netcdf(data: xr.Dataset, path: Path, chunk: int | None = None) -> str:
    encoding: Any = {}
    if chunk:
        encoding = {
            name: {"chunksizes": (min(chunk, v.shape[0]), *v.shape[1:])}
            for name, v in data.data_vars.items()
            if "time" in v.dims and v.dtype.kind != "U"
        }
    data.to_netcdf(path, engine="h5netcdf", encoding=encoding)
    return str(path)


def as_zarr(data: xr.Dataset, path: Path, chunk: int = 3) -> str:
    encoding: Any = {
        name: {"chunks": (min(chunk, v.shape[0]), *v.shape[1:])}
        for name, v in data.data_vars.items()
        if "time" in v.dims
    }
    data.to_zarr(path, zarr_format=2, encoding=encoding)
    return str(path)


def arrays_domain(**keys: Any) -> Arrays:
    """The domain, with its data opened."""
    domain = Arrays(section(**keys))
    domain.data()
    return domain


def section(**keys: Any) -> ArraysSection:
    """A section parsed as from a recipe: JSON, strict."""
    text = json.dumps({"name": "arrays"} | keys)
    return ArraysSection.model_validate_json(text, strict=True)


def lines(folder: Path) -> dict[str, Any]:
    np.save(folder / "lines.npy", smooth(30, 17))
    return {"path": str(folder / "lines.npy"), "axes": {"dim_1": "line"}}


def globe(folder: Path) -> dict[str, Any]:
    path = as_netcdf(climate()[["t2m"]], folder / "globe.nc")
    return {"path": path, "axes": GLOBE}


def levels(folder: Path) -> dict[str, Any]:
    path = as_zarr(climate()[["z", "t2m", "rain"]], folder / "levels.zarr")
    return {
        "path": path,
        "axes": GLOBE,
        "unroll": ["level"],
        "transforms": {"rain": {"log1p": 1e-4}},
        "normalize": "robust",
    }


def sea(folder: Path) -> dict[str, Any]:
    path = as_netcdf(climate()[["sst", "t2m"]], folder / "sea.nc", chunk=4)
    return {"path": path, "axes": GLOBE, "window": 3, "stride": 2, "per_cell": True}


def films(folder: Path) -> dict[str, Any]:
    """Five simulations of a volume; items are windows of one simulation: four axes."""
    with h5py.File(folder / "films.h5", "w") as file:
        file["u"] = smooth(5, 9, 4, 5, 6)
        for i, name in enumerate(("run", "step", "x", "y", "z")):
            file["u"].dims[i].label = name
            file[name] = np.arange(file["u"].shape[i])
            file[name].make_scale(name)
            file["u"].dims[i].attach_scale(file[name])
    return {
        "path": str(folder / "films.h5"),
        "axes": {"x": "circle", "y": "line", "z": "line"},
        "along": "step",
        "window": 3,
        "val": 0.2,
    }


def many(folder: Path) -> dict[str, Any]:
    """200 channels."""
    np.savez(folder / "many.npz", u=smooth(20, 200, 5, 7))
    return {"path": str(folder / "many.npz")} | MANY


MANY: dict[str, Any] = {"axes": {"dim_2": "line", "dim_3": "circle"}, "unroll": ["dim_1"]}


def everything(folder: Path) -> dict[str, Any]:
    """All conditions at once."""
    path = as_netcdf(climate(), folder / "everything.nc")
    return {"path": path} | CONDITIONED


CONDITIONED: dict[str, Any] = {
    "axes": GLOBE,
    "variables": ["z", "sst"],
    "unroll": ["level"],
    "conditions": {
        "static": ["land", "latitude"],
        "grids": ["t2m", "rain"],
        "past": 2,
        "scalars": ["time.dayofyear", "time.hour", "co2"],
        "categories": ["regime", "phase"],
    },
    "transforms": {"rain": "sqrt"},
    "gap": 2,
}
