"""Items of arrays into files of the kind that the data came in: NetCDF, HDF5, Zarr, NumPy.

A file is as the source's: names, order of dimensions, coordinates, attributes, types; in place of
the sample dimensions stands one, ``sample``. It grows item by item beside its place, and is renamed
when the last item is in, or when something stops the items before.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from jitkit.domains.arrays.items import Sample
from jitkit.domains.arrays.output import SUFFIXES, Column, as_stored
from jitkit.errors import DataError
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

NUMBERS_IN_CHUNK = 1024  # of what is one number an item


def write_items(
    items: Iterable[Sample], path: Path, metadata: Mapping[str, Any], parts: Sequence[Column]
) -> list[Path]:
    """Write items to ``samples.nc`` (or .zarr, .h5, .npy, .npz) in a folder.

    Args:
        items: made as they are asked for.
        path: the folder; made where it is not there.
        metadata: of `describe`, with ``axes`` (name, size) of an item and ``missing``.
        parts: the variables.
    """
    path.mkdir(parents=True, exist_ok=True)
    kind = metadata["kind"]
    final = path / f"samples{SUFFIXES[kind]}"
    aside = final.with_name(f".{final.name}.part")
    _remove(aside)
    writer: Writer = WRITERS[kind](aside, parts, metadata)
    count = 0
    try:
        for item in items:
            writer.append({c.name: as_stored(c.take(item), c.dtype) for c in parts})
            count += 1
    finally:  # what was made so far is worth keeping, whatever stopped the rest
        writer.close(count)
        if count:
            _remove(final)
            os.replace(aside, final)
        else:
            _remove(aside)
    if not count:
        raise DataError(f"no items to write to {final}")
    return [final]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Writer(Protocol):
    """A file that grows by items."""

    def append(self, row: Mapping[str, Array]) -> None:
        """Add an item, its part of each variable by name."""

    def close(self, count: int) -> None:
        """Leave a whole file of ``count`` items, which are all but one that may be half in."""


def _template(parts: Sequence[Column], metadata: Mapping[str, Any]) -> xarray.Dataset:
    """A file of no items, with all that does not grow."""
    import xarray

    sample = sample_dim(metadata)
    variables: dict[str, Any] = {}
    for c in parts:
        fill = {"_FillValue": np.array(np.nan, c.dtype)[()]} if c.dtype.startswith("f") else {}
        empty = np.empty((0, *c.shape), c.dtype)
        variables[c.name] = xarray.Variable((sample, *c.dims), empty, _writable(c.attrs), fill)
    mappings = {str(c.attrs.get("grid_mapping", "")) for c in parts}
    coords: dict[str, Any] = {}
    for name, c in metadata["coords"].items():
        values = np.asarray(c["values"])
        values = values if c["dims"] else values.reshape(())
        among = variables if name in mappings else coords
        attrs = _writable(c["attrs"])
        among[name] = xarray.Variable(c["dims"], values, attrs, {"_FillValue": None})
    return xarray.Dataset(variables, coords, _writable(metadata["attrs"]))


def _writable(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that NetCDF takes too, which has no true and false."""
    return {name: int(x) if isinstance(x, bool) else x for name, x in attrs.items()}


def sample_dim(metadata: Mapping[str, Any]) -> str:
    """``sample``, unless a dimension of the items has that name."""
    taken = {dim for v in metadata["variables"] for dim in v["dims"]} | set(metadata["coords"])
    return next(name for name in ("sample", "item", "sample_") if name not in taken)


class NetCDF:
    """NetCDF 4, which is HDF5; the dimension of samples has no end."""

    def __init__(self, path: Path, parts: Sequence[Column], metadata: Mapping[str, Any]) -> None:
        import h5netcdf

        template = _template(parts, metadata)
        for c in parts:
            chunk = (1, *c.shape) if c.shape else (NUMBERS_IN_CHUNK,)
            template.variables[c.name].encoding["chunksizes"] = chunk
        self._sample = sample_dim(metadata)
        template.to_netcdf(path, engine="h5netcdf", unlimited_dims=[self._sample])
        self._file = h5netcdf.File(path, "r+")
        self._count = 0

    def append(self, row: Mapping[str, Array]) -> None:
        """Add an item."""
        self._file.resize_dimension(self._sample, self._count + 1)
        for name, values in row.items():
            self._file[name][self._count] = values
        self._count += 1

    def close(self, count: int) -> None:
        """Cut to the whole items and close."""
        self._file.resize_dimension(self._sample, count)
        self._file.close()


class Zarr:
    """Zarr, version 2, which every reader of Zarr knows; a chunk an item."""

    def __init__(self, path: Path, parts: Sequence[Column], metadata: Mapping[str, Any]) -> None:
        import zarr

        template = _template(parts, metadata)
        for c in parts:
            chunk = (1, *c.shape) if c.shape else (NUMBERS_IN_CHUNK,)
            template.variables[c.name].encoding["chunks"] = chunk
        template.to_zarr(path, zarr_format=2, consolidated=False)
        self._path, self._names = path, [c.name for c in parts]
        self._group: Any = zarr.open_group(path, mode="r+")

    def append(self, row: Mapping[str, Array]) -> None:
        """Add an item."""
        for name, values in row.items():
            self._group[name].append(values[None])

    def close(self, count: int) -> None:
        """Cut to the whole items, and gather the metadata in one place."""
        import zarr

        for name in self._names:
            self._group[name].resize((count, *self._group[name].shape[1:]))
        zarr.consolidate_metadata(self._path, zarr_format=2)


class _NpyFile:
    """A .npy file that grows; numpy leaves room in its header for the count."""

    def __init__(self, path: Path, column: Column) -> None:
        self._column = column
        self._file: BinaryIO = open(path, "w+b")
        self._header(0)
        self._begin = self._file.tell()

    def append(self, values: Array) -> None:
        self._file.write(np.ascontiguousarray(values).tobytes())

    def close(self, count: int) -> None:
        bytes_each = prod(self._column.shape) * np.dtype(self._column.dtype).itemsize
        self._file.truncate(self._begin + count * bytes_each)
        self._file.seek(0)
        self._header(count)
        self._file.close()

    def _header(self, count: int) -> None:
        np.lib.format.write_array_header_1_0(
            self._file,
            {
                "descr": np.lib.format.dtype_to_descr(np.dtype(self._column.dtype)),
                "fortran_order": False,
                "shape": (count, *self._column.shape),
            },
        )


class Npy:
    """One .npy file; what items were told has no place in it."""

    def __init__(self, path: Path, parts: Sequence[Column], metadata: Mapping[str, Any]) -> None:
        self._name = parts[0].name
        self._file = _NpyFile(path, parts[0])

    def append(self, row: Mapping[str, Array]) -> None:
        """Add an item."""
        self._file.append(row[self._name])

    def close(self, count: int) -> None:
        """Write the count."""
        self._file.close(count)


class Npz:
    """Several .npy files in one archive, and the coordinates."""

    def __init__(self, path: Path, parts: Sequence[Column], metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._folder = path.with_name(f"{path.name}.parts")
        _remove(self._folder)
        self._folder.mkdir()
        self._files = {c.name: _NpyFile(self._folder / f"{i}.npy", c) for i, c in enumerate(parts)}

    def append(self, row: Mapping[str, Array]) -> None:
        """Add an item."""
        for name, values in row.items():
            self._files[name].append(values)

    def close(self, count: int) -> None:
        """Put the files into the archive."""
        with zipfile.ZipFile(self._path, "w") as archive:
            for i, (name, file) in enumerate(self._files.items()):
                file.close(count)
                archive.write(self._folder / f"{i}.npy", f"{name}.npy")
        _remove(self._folder)


WRITERS: dict[str, Callable[[Path, Sequence[Column], Mapping[str, Any]], Writer]] = {
    "netcdf": NetCDF,
    "hdf5": NetCDF,
    "zarr": Zarr,
    "npy": Npy,
    "npz": Npz,
}
