"""Uncompressed arrays in a file: NumPy .npy and .npz, NetCDF 3, contiguous HDF5.

On disk they are memory-mapped, so reading a few cells reads a few pages; remote ones are read in
blocks.
"""

from __future__ import annotations

import io
import mmap
from functools import partial
from math import prod
from typing import Any

import numpy as np

from jitkit.errors import DataError
from jitkit.stores.chunks import Box, Source, block_shape, chunk_box, regular_starts
from jitkit.stores.locations import File, Location, OpenFiles, Zip
from jitkit.utils.types import Array

memory_maps: OpenFiles[mmap.mmap] = OpenFiles(256)
"""Files mapped by this process. A mapping occupies a file descriptor, of which there are few."""


class Blocks:
    """An array in a file, in chunks or, without them, in blocks of a few MB."""

    def __init__(
        self,
        location: Location,
        prefix: str,
        shape: tuple[int, ...],
        dtype: Any,
        chunk: tuple[int, ...] | None = None,
    ) -> None:
        """``prefix`` begins the names of the chunks."""
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.starts = regular_starts(shape, chunk or block_shape(shape, self.dtype.itemsize))
        self._location, self._prefix = location, prefix

    def chunk_name(self, index: tuple[int, ...]) -> str:
        return self._prefix + ".".join(map(str, index))

    def stamp(self, index: tuple[int, ...]) -> str:
        return self._location.stamp("")


class Mapped(Blocks):
    """An array in a file on disk, which is memory-mapped."""

    def __init__(
        self, file: File, offset: int, shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...]
    ) -> None:
        super().__init__(file, "", shape, dtype)
        self._path, self._key, self._offset, self._strides = file.path, repr(file), offset, strides
        last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        self._end = offset + last + self.dtype.itemsize

    def chunk(self, index: tuple[int, ...]) -> Array:
        return self.view(chunk_box(self, index))

    def view(self, box: Box) -> Array:
        """The cells of a box, not copied.

        Raises:
            DataError: the file became shorter, where reading from memory would end the process.
        """
        memory = memory_maps.get(self._key, partial(_map, self._path))
        size = min(len(memory), memory.size())
        if size < self._end:
            raise DataError(f"{self._path}: {_cut_short(size, self._end)}")
        cells: Array = np.ndarray(self.shape, self.dtype, memory, self._offset, self._strides)[box]
        return cells


def _map(path: str) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: it is empty
        raise DataError(f"{path}: cannot be read ({error}); copy it again") from error


def _cut_short(size: int, needed: int) -> str:
    return f"it is cut short: it has {size} of at least {needed} bytes; copy it again"


class Ranges(Blocks):
    """A contiguous array, or one contiguous part per first index, read in blocks."""

    def __init__(
        self, location: Location, offset: int, shape: tuple[int, ...], dtype: Any, stride: int
    ) -> None:
        itemsize = np.dtype(dtype).itemsize
        chunk = block_shape(shape, itemsize)
        if shape and stride != prod(shape[1:]) * itemsize:
            chunk = (1, *chunk[1:])
        super().__init__(location, "", shape, dtype, chunk)
        self._offset, self._stride = offset, stride

    def chunk(self, index: tuple[int, ...]) -> Array:
        begin = [int(s[i]) for s, i in zip(self.starts, index, strict=True)]
        shape = [int(s[i + 1] - s[i]) for s, i in zip(self.starts, index, strict=True)]
        steps = [prod(self.shape[axis + 1 :]) for axis in range(len(self.shape))]
        inside = sum(b * s for b, s in zip(begin[1:], steps[1:], strict=True)) * self.dtype.itemsize
        start = self._offset + (begin[0] * self._stride if begin else 0) + inside
        data = self._location.read("", start, prod(shape) * self.dtype.itemsize)
        return np.frombuffer(data or b"", self.dtype).reshape(shape)


def contiguous_source(
    location: Location,
    offset: int,
    shape: tuple[int, ...],
    dtype: Any,
    *,
    stride: int | None = None,
    fortran: bool = False,
) -> Source:
    """The source of an array that starts at byte ``offset`` of a file.

    Args:
        location: location of the file.
        offset: in bytes.
        shape: shape of the array.
        dtype: with its byte order.
        stride: bytes from one first index to the next, if other records are interleaved.
        fortran: the first axis varies fastest.

    Raises:
        DataError: the file ends before the array does.
    """
    dtype = np.dtype(dtype)
    row = prod(shape[1:]) * dtype.itemsize
    stride = row if stride is None else stride
    size = int(location.stamp("").split()[0])
    needed = offset + (max(0, shape[0] - 1) * stride if shape else 0) + row
    if 0 not in shape and size < needed:
        raise DataError(_cut_short(size, needed))
    if isinstance(location, File) and 0 not in shape:
        strides = _strides(shape, dtype.itemsize, stride, fortran)
        return Mapped(location, offset, shape, dtype, strides)
    if fortran and len(shape) > 1:
        raise DataError("it is in Fortran order, which is read from disk only; copy it to disk")
    return Ranges(location, offset, shape, dtype, stride)


def _strides(shape: tuple[int, ...], itemsize: int, first: int, fortran: bool) -> tuple[int, ...]:
    """Bytes from one index of each axis to the next."""
    if fortran:
        return tuple(prod(shape[:axis]) * itemsize for axis in range(len(shape)))
    strides = [prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    return tuple([first, *strides[1:]] if shape else [])


class Whole:
    """An array that is read only as a whole: a compressed .npz entry, a text variable."""

    def __init__(
        self, make: Any, shape: tuple[int, ...], dtype: Any, name: str, location: Location
    ) -> None:
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.starts = regular_starts(shape, shape)
        self._make, self._name, self._location = make, name, location

    def chunk_name(self, index: tuple[int, ...]) -> str:
        return self._name

    def stamp(self, index: tuple[int, ...]) -> str:
        return self._location.stamp("")

    def chunk(self, index: tuple[int, ...]) -> Array:
        values: Array = self._make()
        return values


def npy_source(location: Location, start: int, name: str) -> Source:
    """The source of an array in NumPy format at byte ``start`` of a file.

    Raises:
        DataError: it holds Python objects or records.
    """
    left = int(location.stamp("").split()[0]) - start
    head = location.read("", start, min(2**12, left)) or b""
    shape, fortran, dtype, header = npy_header(head, name)
    return contiguous_source(location, start + header, shape, dtype, fortran=fortran)


def npy_header(data: bytes, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, dtype, and length of the header in bytes."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[min(version[0], 2)](file)
    except ValueError as error:
        raise DataError(f"array {name!r}: {error}") from error
    if dtype.hasobject or dtype.names:
        what = "Python objects" if dtype.hasobject else "records"
        raise DataError(
            f"array {name!r} holds {what}; save numbers: np.save(path, np.stack(list(a)))"
        )
    return shape, fortran, dtype, file.tell()


def npz_sources(path: str) -> dict[str, Source]:
    """Arrays of an .npz by name: memory-mapped if uncompressed, else each read whole."""
    archive = Zip(path)
    sources: dict[str, Source] = {}
    for name in archive.names():
        if not name.endswith(".npy"):
            continue
        head = archive.read(name, 0, min(2**12, archive.size(name))) or b""
        shape, fortran, dtype, header = npy_header(head, name[:-4])
        start = archive.start(name)
        if start is not None:
            source = contiguous_source(File(path), start + header, shape, dtype, fortran=fortran)
        else:
            make = partial(_entry, archive, name)
            source = Whole(make, shape, dtype, name, archive)
        sources[name[:-4]] = source
    return sources


def _entry(archive: Zip, name: str) -> Array:
    array: Array = np.lib.format.read_array(
        io.BytesIO(archive.read(name) or b""), allow_pickle=False
    )
    return array
