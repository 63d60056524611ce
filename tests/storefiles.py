"""Small files and stores of every format, shared by several tests."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from jitkit.stores.store import Store

Array = np.ndarray[Any, Any]
FORMATS = ("zarr2", "zarr3", "sharded", "zarr2.zip", "zarr3.zip", "netcdf3", "netcdf4", "hdf5")
DTYPES = ("f4", "f8", "i1", "i2", "i4", "u1", ">f4", ">f8", ">i2", ">i4")


def field(shape: tuple[int, ...] = (6, 5, 4), dtype: str = "f4") -> Array:
    """An array of distinct values."""
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


def raw_dataset(values: Array, attrs: dict[str, Any]) -> xr.Dataset:
    """One variable ``v``, encoded, with coordinates of the first two axes."""
    dims = ("time", "y", "x")[: values.ndim]
    coords = {
        "time": ("time", np.arange(len(values)), {"units": "days since 2001-02-27"}),
        "y": ("y", np.linspace(10, 20, values.shape[1]), {"units": "degrees_north"}),
    }
    return xr.Dataset({"v": (dims, values, attrs)}, coords=coords)


def write(raw: xr.Dataset, kind: str, folder: Path, chunks: tuple[int, ...] | None) -> Path:
    """Write the dataset to a file or store of a format, with the given chunks."""
    encoding: dict[str, Any] = {}
    if kind.startswith("netcdf3"):
        path = folder / "v.nc"
        raw.to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")
        return path
    if kind in ("netcdf4", "hdf5"):
        path = folder / ("v.nc" if kind == "netcdf4" else "v.h5")
        if chunks:
            encoding["v"] = {"chunksizes": chunks, "zlib": True, "shuffle": True}
        raw.to_netcdf(path, engine="h5netcdf", encoding=encoding)
        return path
    path = folder / "v.zarr"
    if chunks:
        encoding["v"] = {"chunks": chunks}
        if kind == "sharded":
            encoding["v"]["shards"] = tuple(2 * n for n in chunks)
    version: Any = 2 if kind.startswith("zarr2") else 3
    raw.to_zarr(path, encoding=encoding, zarr_format=version, consolidated=False)
    return zipped(path) if kind.endswith("zip") else path


def zipped(path: Path, compression: int = zipfile.ZIP_STORED) -> Path:
    """Zip a folder."""
    archive = path.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", compression) as file:
        for entry in sorted(path.rglob("*")):
            if entry.is_file():
                file.write(entry, str(entry.relative_to(path)))
    return archive


def as_xarray_reads(path: Path) -> xr.Dataset:
    """The reference: the dataset as xarray reads it."""
    if path.suffix == ".nc" or path.suffix == ".h5":
        engine: Any = "scipy" if path.read_bytes()[:3] == b"CDF" else "h5netcdf"
        with xr.open_dataset(path, engine=engine, decode_timedelta=False) as opened:
            return opened.load()
    source: Any = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else path
    return xr.open_zarr(source, chunks=None, consolidated=False, decode_timedelta=False).load()


def source(store: Store, name: str) -> Any:
    """The chunk source of a variable."""
    return store._variables[name].pieces[0].source
