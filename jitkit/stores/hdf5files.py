"""HDF5 and NetCDF 4 reader: parallel chunk reads without HDF5's global lock.

Chunks with filters supported by `codecs` are read as bytes of the file, at offsets that HDF5
reports once; contiguous data are memory-mapped. The rest (rare filters, virtual and external data)
is read through h5py.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError, listed, nearest
from jitkit.stores.chunks import Source, chunk_box
from jitkit.stores.codecs import Decoder, hdf5_decoder
from jitkit.stores.locations import File, Lazy, Location, OpenFiles
from jitkit.stores.opened import Opened
from jitkit.stores.raw import Blocks, contiguous_source
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

NO_FILTER = (
    "pip install hdf5plugin and set HDF5_PLUGIN_PATH to the output of "
    "python -c 'import hdf5plugin; print(hdf5plugin.PLUGIN_PATH)'"
)

handles: OpenFiles[Any] = OpenFiles(32)
"""Files open in h5py, shared by all stores of a process, for chunks that only h5py can read."""


def hdf5_file(location: Location) -> Any:
    """The file at a location, opened for reading in h5py.

    Closed by the caller or with its last reference: HDF5 cannot open a file in two modes at once,
    and other code may want to open it.
    """
    import h5py

    if not isinstance(location, File):
        return h5py.File(as_file(location), "r")
    try:
        return h5py.File(location.path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(
            location.path, "r", locking=False
        )  # network and read-only disks lack locks


class _LocationFile(io.RawIOBase):
    """A location as a raw Python file, for libraries that read metadata from a file object."""

    def __init__(self, location: Location) -> None:
        self._location, self._offset = location, 0
        self._size = int(location.stamp("").split()[0])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._offset = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._size}[whence]
        )
        return self._offset

    def tell(self) -> int:
        return self._offset

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(0, self._size - self._offset))
        if length:
            buffer[:length] = self._location.read("", self._offset, length)
        self._offset += length
        return length


def as_file(location: Location) -> Any:
    """A location as a buffered Python file."""
    return io.BufferedReader(_LocationFile(location), 2**18)


class HdfChunks(Blocks):
    """A chunked dataset, read without HDF5."""

    def __init__(self, location: Location, name: str, dataset: Any, decoder: Decoder) -> None:
        super().__init__(location, f"{name}/", dataset.shape, decoder.dtype, decoder.shape)
        self._decoder = decoder
        self._fill = np.asarray(dataset.fillvalue, decoder.dtype)
        self._index = Lazy(partial(_chunk_index, location, name, decoder.shape))

    def chunk(self, index: tuple[int, ...]) -> Array:
        start, length, skip = map(int, self._index()[index])
        if length == 0:
            return np.broadcast_to(self._fill, self._decoder.shape)
        data = self._location.read("", start, length)
        return self._decoder(data, skip)


def _chunk_index(location: Location, name: str, chunk: tuple[int, ...]) -> Array:
    """Byte offset, length and filter mask of every chunk, (chunks along each axis, 3).

    With 20,000 chunks, querying HDF5 one by one takes 200 µs each, all together 1.5 µs each.
    """
    with hdf5_file(location) as file:
        return _iterate_chunks(file[name], chunk)


def _iterate_chunks(dataset: Any, chunk: tuple[int, ...]) -> Array:
    counts = [-(-size // step) for size, step in zip(dataset.shape, chunk, strict=True)]
    entries = np.zeros((*counts, 3), np.int64)

    def record(info: Any) -> None:
        index = tuple(at // step for at, step in zip(info.chunk_offset, chunk, strict=True))
        entries[index] = info.byte_offset, info.size, info.filter_mask

    dataset.id.chunk_iter(record)
    return entries


class HdfDataset(Blocks):
    """A dataset read by h5py, one chunk at a time."""

    def __init__(self, location: Location, name: str, dataset: Any) -> None:
        super().__init__(location, f"{name}/", dataset.shape, dataset.dtype, dataset.chunks)
        self._name = name

    def chunk(self, index: tuple[int, ...]) -> Array:
        dataset = handles.get(repr(self._location), partial(hdf5_file, self._location))[self._name]
        try:
            return np.asarray(dataset[chunk_box(self, index)])
        except OSError as error:
            raise DataError(_missing_filter(dataset) or str(error)) from error


def _missing_filter(dataset: Any) -> str:
    """The filter that HDF5 lacks for a dataset, and how to get it; ``""`` if it lacks none."""
    import h5py

    for number, _, _, name in _filters(dataset):
        if not h5py.h5z.filter_avail(number):
            named = f"{number} ({name.decode()})" if name else str(number)
            return (
                f"HDF5 filter {named} is not installed; {NO_FILTER}, or rewrite the file: "
                "h5repack -f GZIP=4 OLD NEW"
            )
    return ""


def _filters(dataset: Any) -> list[tuple[int, int, tuple[int, ...], bytes]]:
    """Number, flags, settings and name of each filter, in the order applied."""
    plist = dataset.id.get_create_plist()
    return [plist.get_filter(i) for i in range(plist.get_nfilters())]


def hdf5_source(location: Location, dataset: Any) -> Source:
    """The source of a numeric dataset of an open file."""
    import h5py

    name = dataset.name
    dtype = np.dtype(dataset.dtype)
    plain = dtype.kind in "iuf" and h5py.h5t.py_create(dtype).equal(dataset.id.get_type())
    if not plain or dataset.is_virtual or dataset.external or dataset.size == 0:
        return HdfDataset(location, name, dataset)
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is None:  # stored in the header (compact), or never written
            return HdfDataset(location, name, dataset)
        return contiguous_source(location, offset, dataset.shape, dtype)
    filters = [(number, settings) for number, _, settings, _ in _filters(dataset)]
    decoder = hdf5_decoder(filters, dataset.chunks, dtype)
    if decoder is None or not hasattr(dataset.id, "chunk_iter"):  # HDF5 before 1.10.10
        return HdfDataset(location, name, dataset)
    return HdfChunks(location, name, dataset, decoder)


@contextmanager
def open_hdf5(file: Any, location: Location, path: str, group: str | None) -> Iterator[Opened]:
    """Open a group of an HDF5 or NetCDF 4 file that is open in h5py.

    Raises:
        DataError: no such group, or a group without datasets.
    """
    datasets = _datasets(file, path, group)
    with _raw(file, group) as raw:
        sources = {}
        for name, variable in raw.variables.items():
            stored = datasets.get(str(name)) or datasets.get(f"_nc4_non_coord_{name}")
            if stored is not None and variable.dtype.kind in "iufb":
                sources[str(name)] = hdf5_source(location, stored)
        yield Opened(raw, sources, location)


@contextmanager
def _raw(file: Any, group: str | None) -> Iterator[xarray.Dataset]:
    """A group as xarray opens it, undecoded; unnamed axes are phony_dim_0, ... by size."""
    import h5netcdf
    import xarray

    with (
        h5netcdf.File(file, "r", phony_dims="sort", decode_vlen_strings=True) as opened,
        xarray.backends.H5NetCDFStore(opened, group=group) as store,
        xarray.open_dataset(store, decode_cf=False, cache=False) as raw,
    ):
        yield raw


def _datasets(file: Any, path: str, group: str | None) -> dict[str, Any]:
    """A group's datasets by name."""
    import h5py

    node = file.get(group) if group else file
    if isinstance(node, h5py.Group):
        children = {name: node.get(name) for name in node}
        datasets = {n: child for n, child in children.items() if isinstance(child, h5py.Dataset)}
        if datasets:
            return datasets
    known: list[str] = []
    file.visititems(
        lambda name, child: (
            known.append(name.rpartition("/")[0]) if isinstance(child, h5py.Dataset) else None
        )
    )
    known = [name for name in dict.fromkeys(known) if name]
    if isinstance(node, h5py.Group):
        what = f"{f'group {group!r}' if group else 'the root'} has no arrays; give domain.group"
    else:
        what = f"no group {group!r}{nearest(str(group), known)}"
    raise DataError(f"{path}: {what}; groups with arrays: {listed(known, 20) or 'none'}")
