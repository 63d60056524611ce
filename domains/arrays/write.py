"""Write items of arrays in the format of the source data: NetCDF, HDF5, Zarr, NumPy.

A file has the source's names, order of dimensions, coordinates, attributes and types; one dimension
``sample`` replaces the sample dimensions. It is written item by item to a temporary name and
renamed after the last item, or when an exception interrupts the items.
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

SCALARS_PER_CHUNK = 1024  # for variables with one number per item


def write_items(
    items: Iterable[Sample], path: Path, metadata: Mapping[str, Any], columns: Sequence[Column]
) -> list[Path]:
    """Write items to ``samples.nc`` (or .zarr, .h5, .npy, .npz) in a folder.

    Args:
        items: evaluated lazily.
        path: the folder; created if needed.
        metadata: of `output_metadata`, with ``axes`` (name, size) of an item and ``missing``.
        columns: the variables.
    """
    path.mkdir(parents=True, exist_ok=True)
    kind = metadata["kind"]
    final = path / f"samples{SUFFIXES[kind]}"
    temporary = final.with_name(f".{final.name}.part")
    _remove(temporary)
    writer: Writer = WRITERS[kind](temporary, columns, metadata)
    count = 0
    try:
        for item in items:
            writer.append({c.name: as_stored(c.take(item), c.dtype) for c in columns})
            count += 1
    finally:  # items written before an exception are kept
        writer.close(count)
        if count:
            _remove(final)
            os.replace(temporary, final)
        else:
            _remove(temporary)
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
        """Append an item: its values of each variable by name."""

    def close(self, count: int) -> None:
        """Close the file with ``count`` complete items; drop one that is partly written."""


def _template(columns: Sequence[Column], metadata: Mapping[str, Any]) -> xarray.Dataset:
    """Dataset without items, with everything that does not grow."""
    import xarray

    sample = sample_dim(metadata)
    variables: dict[str, Any] = {}
    for c in columns:
        fill = {"_FillValue": np.array(np.nan, c.dtype)[()]} if c.dtype.startswith("f") else {}
        empty = np.empty((0, *c.shape), c.dtype)
        variables[c.name] = xarray.Variable((sample, *c.dims), empty, _writable(c.attrs), fill)
    mappings = {str(c.attrs.get("grid_mapping", "")) for c in columns}
    coords: dict[str, Any] = {}
    for name, c in metadata["coords"].items():
        values = np.asarray(c["values"])
        values = values if c["dims"] else values.reshape(())
        target = variables if name in mappings else coords
        attrs = _writable(c["attrs"])
        target[name] = xarray.Variable(c["dims"], values, attrs, {"_FillValue": None})
    return xarray.Dataset(variables, coords, _writable(metadata["attrs"]))


def _writable(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that NetCDF can store: booleans as integers."""
    return {name: int(x) if isinstance(x, bool) else x for name, x in attrs.items()}


def sample_dim(metadata: Mapping[str, Any]) -> str:
    """Name of the sample dimension: ``sample``, unless a dimension of the items has that name."""
    taken = {dim for v in metadata["variables"] for dim in v["dims"]} | set(metadata["coords"])
    return next(name for name in ("sample", "item", "sample_") if name not in taken)


class NetCDFWriter:
    """NetCDF 4 (HDF5), with an unlimited sample dimension."""

    def __init__(self, path: Path, columns: Sequence[Column], metadata: Mapping[str, Any]) -> None:
        import h5netcdf

        template = _template(columns, metadata)
        for c in columns:
            chunk = (1, *c.shape) if c.shape else (SCALARS_PER_CHUNK,)
            template.variables[c.name].encoding["chunksizes"] = chunk
        self._sample = sample_dim(metadata)
        template.to_netcdf(path, engine="h5netcdf", unlimited_dims=[self._sample])
        self._file = h5netcdf.File(path, "r+")
        self._count = 0

    def append(self, row: Mapping[str, Array]) -> None:
        """Append an item."""
        self._file.resize_dimension(self._sample, self._count + 1)
        for name, values in row.items():
            self._file[name][self._count] = values
        self._count += 1

    def close(self, count: int) -> None:
        """Truncate to the complete items and close."""
        self._file.resize_dimension(self._sample, count)
        self._file.close()


class ZarrWriter:
    """Zarr version 2, which every Zarr reader supports; one chunk per item."""

    def __init__(self, path: Path, columns: Sequence[Column], metadata: Mapping[str, Any]) -> None:
        import zarr

        template = _template(columns, metadata)
        for c in columns:
            chunk = (1, *c.shape) if c.shape else (SCALARS_PER_CHUNK,)
            template.variables[c.name].encoding["chunks"] = chunk
        template.to_zarr(path, zarr_format=2, consolidated=False)
        self._path, self._names = path, [c.name for c in columns]
        self._group: Any = zarr.open_group(path, mode="r+")

    def append(self, row: Mapping[str, Array]) -> None:
        """Append an item."""
        for name, values in row.items():
            self._group[name].append(values[None])

    def close(self, count: int) -> None:
        """Truncate to the complete items and consolidate the metadata."""
        import zarr

        for name in self._names:
            self._group[name].resize((count, *self._group[name].shape[1:]))
        zarr.consolidate_metadata(self._path, zarr_format=2)


class _NpyFile:
    """A growing .npy file; numpy leaves space in the header for the number of items."""

    def __init__(self, path: Path, column: Column) -> None:
        self._column = column
        self._file: BinaryIO = open(path, "w+b")
        self._header(0)
        self._start = self._file.tell()

    def append(self, values: Array) -> None:
        self._file.write(np.ascontiguousarray(values).tobytes())

    def close(self, count: int) -> None:
        bytes_each = prod(self._column.shape) * np.dtype(self._column.dtype).itemsize
        self._file.truncate(self._start + count * bytes_each)
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


class NpyWriter:
    """One .npy file; conditions are not written."""

    def __init__(self, path: Path, columns: Sequence[Column], metadata: Mapping[str, Any]) -> None:
        self._name = columns[0].name
        self._file = _NpyFile(path, columns[0])

    def append(self, row: Mapping[str, Array]) -> None:
        """Append an item."""
        self._file.append(row[self._name])

    def close(self, count: int) -> None:
        """Write the number of items into the header."""
        self._file.close(count)


class NpzWriter:
    """One .npy file per variable in an .npz archive."""

    def __init__(self, path: Path, columns: Sequence[Column], metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._folder = path.with_name(f"{path.name}.parts")
        _remove(self._folder)
        self._folder.mkdir()
        files = ((c.name, _NpyFile(self._folder / f"{i}.npy", c)) for i, c in enumerate(columns))
        self._files = dict(files)

    def append(self, row: Mapping[str, Array]) -> None:
        """Append an item."""
        for name, values in row.items():
            self._files[name].append(values)

    def close(self, count: int) -> None:
        """Move the files into the archive."""
        with zipfile.ZipFile(self._path, "w") as archive:
            for i, (name, file) in enumerate(self._files.items()):
                file.close(count)
                archive.write(self._folder / f"{i}.npy", f"{name}.npy")
        _remove(self._folder)


WRITERS: dict[str, Callable[[Path, Sequence[Column], Mapping[str, Any]], Writer]] = {
    "netcdf": NetCDFWriter,
    "hdf5": NetCDFWriter,
    "zarr": ZarrWriter,
    "npy": NpyWriter,
    "npz": NpzWriter,
}
