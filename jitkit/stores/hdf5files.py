"""HDF5 and NetCDF 4: where a dataset's chunks lie in its file and how they are decoded.

HDF5 reads under one lock for all threads. Chunks whose filters `codecs` knows are therefore read as
bytes of the file, at the places that HDF5 tells once; data in one piece are mapped. What is left
(rare filters, virtual and external data) goes through h5py.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError, listed, nearest
from jitkit.stores.chunks import Source, as_box, block, regular
from jitkit.stores.codecs import Decoder, of_hdf5
from jitkit.stores.locations import File, KeptOpen, Lazy, Location
from jitkit.stores.opened import Opened
from jitkit.stores.raw import one_piece
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

handles: KeptOpen[Any] = KeptOpen(32)
"""Files open in h5py for chunks that only it can read, of all stores of a process."""


def hdf5_file(place: Location) -> Any:
    """The file of a place in h5py, for reading.

    It is closed by who opened it, or with its last reference: HDF5 opens no file in two ways at
    once, and others may want this one.
    """
    import h5py

    if not isinstance(place, File):
        return h5py.File(as_file(place), "r")
    try:
        return h5py.File(place.path, "r")
    except OSError as error:
        if "lock" not in str(error):
            raise
        return h5py.File(place.path, "r", locking=False)  # network and read-only disks have none


class _PlaceFile(io.RawIOBase):
    """A place as a Python file, for libraries that read metadata from one."""

    def __init__(self, place: Location) -> None:
        self._place, self._at = place, 0
        self._size = int(place.stamp("").split()[0])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), max(0, self._size - self._at))
        if length:
            buffer[:length] = self._place.read("", self._at, length)
        self._at += length
        return length


def as_file(place: Location) -> Any:
    """A place as a buffered Python file."""
    return io.BufferedReader(_PlaceFile(place), 2**18)


class HdfChunks:
    """A dataset in chunks, read past HDF5."""

    def __init__(self, place: Location, name: str, dataset: Any, decoder: Decoder) -> None:
        self.shape, self.dtype = tuple(dataset.shape), decoder.dtype
        self.starts = regular(self.shape, decoder.shape)
        self._place, self._name, self._decoder = place, name, decoder
        self._fill = np.asarray(dataset.fillvalue, decoder.dtype)
        self._where = Lazy(partial(_chunk_places, place, name, decoder.shape))

    def named(self, index: tuple[int, ...]) -> str:
        return f"{self._name}/{'.'.join(map(str, index))}"

    def stamp(self, index: tuple[int, ...]) -> str:
        return self._place.stamp("")

    def chunk(self, index: tuple[int, ...]) -> Array:
        start, length, skip = map(int, self._where()[index])
        if length == 0:
            return np.broadcast_to(self._fill, self._decoder.shape)
        data = self._place.read("", start, length)
        return self._decoder(data, skip)


def _chunk_places(place: Location, name: str, chunk: tuple[int, ...]) -> Array:
    """First byte, length and mask of filters of every chunk, (chunks along each axis, 3).

    Asking HDF5 for one chunk at a time takes 200 µs among 20,000, for all of them 1.5 µs each.
    """
    with hdf5_file(place) as file:
        return _noted(file[name], chunk)


def _noted(dataset: Any, chunk: tuple[int, ...]) -> Array:
    counts = [-(-size // step) for size, step in zip(dataset.shape, chunk, strict=True)]
    places = np.zeros((*counts, 3), np.int64)

    def note(info: Any) -> None:
        index = tuple(at // step for at, step in zip(info.chunk_offset, chunk, strict=True))
        places[index] = info.byte_offset, info.size, info.filter_mask

    dataset.id.chunk_iter(note)
    return places


class HdfDataset:
    """A dataset read by h5py, whole chunks at a time."""

    def __init__(self, place: Location, name: str, dataset: Any) -> None:
        self.shape, self.dtype = tuple(dataset.shape), np.dtype(dataset.dtype)
        chunk = dataset.chunks or block(self.shape, self.dtype.itemsize)
        self.starts = regular(self.shape, chunk)
        self._place, self._name = place, name

    def named(self, index: tuple[int, ...]) -> str:
        return f"{self._name}/{'.'.join(map(str, index))}"

    def stamp(self, index: tuple[int, ...]) -> str:
        return self._place.stamp("")

    def chunk(self, index: tuple[int, ...]) -> Array:
        file = handles.get(repr(self._place), partial(hdf5_file, self._place))
        return np.asarray(file[self._name][as_box(self, index)])


def hdf5_source(place: Location, dataset: Any) -> Source:
    """The source of a numeric dataset of an open file."""
    import h5py

    name = dataset.name
    dtype = np.dtype(dataset.dtype)
    plain = dtype.kind in "iuf" and h5py.h5t.py_create(dtype).equal(dataset.id.get_type())
    if not plain or dataset.is_virtual or dataset.external or dataset.size == 0:
        return HdfDataset(place, name, dataset)
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is None:  # so small that it lies in the header, or never written
            return HdfDataset(place, name, dataset)
        return one_piece(place, offset, dataset.shape, dtype)
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    decoder = of_hdf5([(f[0], f[2]) for f in filters], dataset.chunks, dtype)
    if decoder is None or not hasattr(dataset.id, "chunk_iter"):
        return HdfDataset(place, name, dataset)
    return HdfChunks(place, name, dataset, decoder)


@contextmanager
def opened_hdf5(file: Any, place: Location, path: str, group: str | None) -> Iterator[Opened]:
    """The contents of a group of an HDF5 or NetCDF 4 file that is open in h5py.

    Raises:
        DataError: no such group, a group without datasets.
    """
    inside = _datasets(file, path, group)
    with _raw(file, group) as raw:
        sources = {}
        for name, variable in raw.variables.items():
            stored = inside.get(str(name)) or inside.get(f"_nc4_non_coord_{name}")
            if stored is not None and variable.dtype.kind in "iufb":
                sources[str(name)] = hdf5_source(place, stored)
        yield Opened(raw, sources, place)


@contextmanager
def _raw(file: Any, group: str | None) -> Iterator[xarray.Dataset]:
    """A group as xarray opens it, undecoded; axes without names get phony_dim_0 and on, by size."""
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
        found = {name: node.get(name) for name in node}
        found = {name: child for name, child in found.items() if isinstance(child, h5py.Dataset)}
        if found:
            return found
    known: list[str] = []
    file.visititems(
        lambda name, child: (
            known.append(name.rpartition("/")[0]) if isinstance(child, h5py.Dataset) else None
        )
    )
    known = [name for name in dict.fromkeys(known) if name]
    if isinstance(node, h5py.Group):
        what = f"{f'group {group!r}' if group else 'its top'} holds no arrays; give domain.group"
    else:
        what = f"no group {group!r}{nearest(str(group), known)}"
    raise DataError(f"{path}: {what}; groups with arrays: {listed(known, 20) or 'none'}")
