"""Random access to array data: Zarr, NetCDF, HDF5, NumPy; on disk or in object stores.

`Store` lists the variables and reads boxes of cells in physical units through a chunk cache of
bounded size. It never writes.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jitkit.errors import DataError, listed, nearest
from jitkit.stores.chunks import Box, ChunkCache, Direct, Fetch, Stats, longest_chunk, read_box
from jitkit.stores.concat import concatenate
from jitkit.stores.fill_values import Fill, fills_by_name, with_fill
from jitkit.stores.locations import Lazy
from jitkit.stores.open import CHECK_PATH
from jitkit.stores.variables import Contents, Piece, Variable, VariableInfo, read_contents
from jitkit.utils.console import warn
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

__all__ = ["Readable", "Store", "VariableInfo"]

FILLED = 0.85  # of the buffer for chunks: the C library retains some freed memory
REQUESTS = 32  # chunks of one read requested in parallel from an object store
HASHED_CHUNKS = 4  # chunks of a variable that a fingerprint reads
HASHED_VALUES = 2**14  # values of each chunk that enter the hash
HASHED_BYTES = {False: 2**28, True: 2**25}  # limit of decoded bytes, by whether remote


class Readable(Protocol):
    """Interface of a `Store`, also for variables derived from those of other stores.

    Thread-safe; pickles without open files.
    """

    path: str
    attrs: dict[str, Any]

    @property
    def variables(self) -> Mapping[str, VariableInfo]:
        """Data variables by name."""

    @property
    def coords(self) -> xarray.Dataset:
        """As `Store.coords`."""

    def read(self, variable: str, where: Mapping[str, int | slice] | None = None) -> Array:
        """As `Store.read`."""

    def read_raw(self, variable: str, where: Mapping[str, int | slice] | None = None) -> Array:
        """As `Store.read_raw`."""

    def starts(self, variable: str, dim: str) -> Array:
        """As `Store.starts`."""

    def fingerprint(self, variables: Iterable[str] | None = None, *, times: bool = True) -> str:
        """As `Store.fingerprint`."""

    @property
    def stats(self) -> Stats:
        """As `Store.stats`."""


class Store:
    """Variables of a file, a group, a Zarr store, or files concatenated along one dimension.

    Thread-safe. Pickles without open files and cache and reopens at the first read, for spawned
    workers; after a fork it starts with an empty cache.

    Attributes:
        path, group, options: the arguments.
        variables: data variables by name, with or without sample dimensions; coordinates, bounds
            and grid mappings are excluded.
        attrs: global attributes.
    """

    variables: Mapping[str, VariableInfo]
    attrs: dict[str, Any]

    def __init__(
        self,
        path: str | Path,
        *,
        group: str | None = None,
        options: Mapping[str, Any] | None = None,
        buffer_bytes: int = 2**30,
        fill: Fill | None = None,
    ) -> None:
        """Open a store, read its metadata and coordinates, and close it.

        Args:
            path: Zarr folder (v2, v3) or a .zip of one; NetCDF 3 or 4 file; HDF5 file; .npy; .npz;
                a glob of any of these, concatenated along the one dimension whose coordinate
                differs; s3://, gs://, az:// or http(s):// URL.
            group: of a Zarr store or an HDF5 file, such as ``"forecast/surface"``.
            options: for URLs: anonymous, endpoint, region, allow_http, retries.
            buffer_bytes: size of the chunk cache.
            fill: physical values that mean "missing" besides declared ones: one for all data
                variables, or one per name.

        Raises:
            DataError: no such path or group, an unknown format (the text says how to convert),
                files that cannot be concatenated.
        """
        self.path, self.group, self.options = str(path), group, dict(options or {})
        self._remote = "://" in self.path
        self._cache = ChunkCache(int(FILLED * buffer_bytes))
        self._pool = Lazy(partial(ThreadPoolExecutor, REQUESTS, "jitkit-store"))
        self._warned: set[str] = set()
        opened = self._open()
        self._coords: xarray.Dataset | None = opened.coords
        self.attrs = opened.attrs
        variables = dict(opened.variables)
        self._fills = {} if fill is None else fills_by_name(fill, variables, self.path)
        variables |= {name: with_fill(variables[name], f) for name, f in self._fills.items()}
        self.variables = {name: v.info for name, v in variables.items()}
        self._variables = opened.coord_variables | variables

    def _open(self) -> Contents:
        paths = _paths(self.path)
        parts = [read_contents(path, self.group, self.options) for path in paths]
        return parts[0] if len(parts) == 1 else concatenate(parts, self.path)

    @property
    def coords(self) -> xarray.Dataset:
        """Coordinates, decoded and in memory: 1-D, 2-D and scalar ones, with attributes.

        Times are datetime64, or cftime for calendars that need it. Bounds are left out.
        """
        if self._coords is None:
            self._coords = self._open().coords
        return self._coords

    @property
    def stats(self) -> Stats:
        """Cache hits, decoded chunks and decoded bytes of this process."""
        return self._cache.stats

    def read(self, variable: str, where: Mapping[str, int | slice] | None = None) -> Array:
        """Physical values of a box of cells, float32, NaN where missing.

        Args:
            variable: a name of `variables`, or of a numeric coordinate.
            where: dimension to index or slice, as in NumPy but with positive steps; other
                dimensions are read whole.

        Returns:
            A new array with the variable's dimensions in order; dimensions indexed by an integer
            are dropped.

        Raises:
            DataError: no such variable or dimension, an index out of range, a variable that is not
                numeric, or a chunk that cannot be read (store, variable and chunk are named).
        """
        v = self._variable(variable)
        if not v.info.numeric:
            dtype = v.info.dtype
            raise DataError(f"{self.path}: {variable!r} is not numeric but {dtype}")
        return self._gather(variable, v, where or {}, np.dtype(np.float32), decoded=True)

    def read_raw(self, variable: str, where: Mapping[str, int | slice] | None = None) -> Array:
        """A box of cells as stored: packed values, integers, bool; text and times are decoded.

        Raises:
            DataError: as `read`.
        """
        v = self._variable(variable)
        dtype = v.info.dtype
        stored = {piece.decode.stored for piece in v.pieces if piece.decode is not None}
        if stored and dtype.kind != "b":
            dtype = np.result_type(*stored)
        return self._gather(variable, v, where or {}, dtype, decoded=False)

    def starts(self, variable: str, dim: str) -> Array:
        """Start of every chunk along a dimension, then the dimension's size.

        Chunks of one file are equal except the last; those of concatenated files may differ.
        """
        v = self._variable(variable)
        _box(self.path, variable, v.info, {dim: slice(None)})  # raises for an unknown dimension
        axis = v.info.dims.index(dim)
        if axis != v.axis:
            return v.pieces[0].source.starts[axis]
        each = [
            piece.source.starts[axis][:-1] + start
            for piece, start in zip(v.pieces, v.starts, strict=False)
        ]
        return np.concatenate([*each, [v.info.shape[axis]]])

    def uniformly_stored(self, variable: str) -> bool:
        """Whether dtype, scale, offset and fill values are the same in all files."""
        return (
            len({(piece.source.dtype, piece.decode) for piece in self._variable(variable).pieces})
            == 1
        )

    def fingerprint(self, variables: Iterable[str] | None = None, *, times: bool = True) -> str:
        """A hash of the data: metadata, sizes and values of a few chunks.

        Args:
            variables: the variables to hash; default all.
            times: include modification times or entity tags. This detects a change anywhere in a
                file, but a copy then counts as different data.

        Raises:
            DataError: as `read`.
        """
        digest = hashlib.sha256()
        samples = []
        for name in sorted(self._variables if variables is None else set(variables)):
            d = self._variable(name).info
            metadata = [name, d.dims, d.shape, str(d.dtype), d.chunks, d.attrs, d.encoding]
            digest.update(repr(metadata).encode())
            if name in self._fills:
                digest.update(repr(self._fills[name]).encode())
            chunks = self._variable(name).sample_chunks(HASHED_CHUNKS)
            samples += [(order, name, *at) for order, at in enumerate(chunks)]
        samples.sort()  # the first chunk of every variable, then the second, up to the byte limit
        if times:
            mapped = self._pool().map if self._remote else map
            digest.update("\n".join(mapped(self._stamp, samples)).encode())
        left = HASHED_BYTES[self._remote]
        for _, name, number, index in samples:
            piece = self._variable(name).pieces[number]
            left -= _chunk_bytes(piece)
            if left >= 0:
                digest.update(_sample(self._chunk(name, number, piece, index)))
        return digest.hexdigest()

    def _stamp(self, sample: tuple[int, str, int, tuple[int, ...]]) -> str:
        _, name, number, index = sample
        return self._variable(name).pieces[number].source.stamp(index)

    def _variable(self, variable: str) -> Variable:
        v = self._variables.get(variable)
        if v is None:
            raise DataError(
                f"{self.path}: no variable {variable!r}; it has {listed(self._variables, 20)}"
                f"{nearest(variable, self._variables)}"
            )
        return v

    def _gather(
        self,
        variable: str,
        v: Variable,
        where: Mapping[str, int | slice],
        dtype: np.dtype[Any],
        *,
        decoded: bool,
    ) -> Array:
        box, kept = _box(self.path, variable, v.info, where)
        boxes = list(v.overlapping(box))
        shape = [len(range(cut.start, cut.stop, cut.step)) for cut in box]
        if len(boxes) == 1:
            number, part, _ = boxes[0]
            out = self._piece(variable, number, v.pieces[number], part, decoded)
            out = out.astype(dtype, copy=False)
        else:
            out = np.empty(shape, dtype)
            for number, part, target in boxes:
                cells = self._piece(variable, number, v.pieces[number], part, decoded)
                out[(slice(None),) * v.axis + (target,)] = cells
        return out.reshape([size for size, keep in zip(shape, kept, strict=True) if keep])

    def _piece(self, variable: str, number: int, piece: Piece, box: Box, decoded: bool) -> Array:
        """A box of one file, as a new array."""
        decode = piece.decode
        source = piece.source
        if decode is None:
            dtype = source.dtype
        else:
            dtype = decode.reads_as if decoded else decode.stored
        if isinstance(source, Direct):
            cells = source.view(box)
            raw = np.array(decode.signed(cells) if decode else cells, dtype)
        else:
            raw = read_box(source, box, self._fetch(variable, number, piece), dtype)
        return decode(raw) if decoded and decode is not None else raw

    def _fetch(self, variable: str, number: int, piece: Piece) -> Fetch:
        """Chunk reader of a piece for `read_box`; parallel requests if the store is remote."""

        def get(index: tuple[int, ...]) -> Array:
            chunk = self._chunk(variable, number, piece, index)
            return piece.decode.signed(chunk) if piece.decode else chunk

        if not self._remote:
            return partial(map, get)
        fitting = self._cache.capacity // (4 * _chunk_bytes(piece))
        at_once = max(1, min(REQUESTS, fitting))

        def fetch(indices: Sequence[tuple[int, ...]]) -> Iterator[Array]:
            for first in range(0, len(indices), at_once):
                yield from self._pool().map(get, indices[first : first + at_once])

        return fetch

    def _chunk(self, variable: str, number: int, piece: Piece, index: tuple[int, ...]) -> Array:
        if isinstance(piece.source, Direct):
            return piece.source.chunk(index)
        key = (variable, number, index)
        return self._cache.get(key, partial(self._decode, variable, piece, index))

    def _decode(self, variable: str, piece: Piece, index: tuple[int, ...]) -> Array:
        try:
            chunk = piece.source.chunk(index)
        except Exception as error:  # codecs and file readers raise many types
            why = " ".join(str(error).split()) or type(error).__name__
            name = piece.source.chunk_name(index)
            raise DataError(f"{piece.path}: variable {variable!r}, chunk {name}: {why}") from error
        if chunk.nbytes > self._cache.capacity and variable not in self._warned:
            self._warned.add(variable)
            warn(
                f"{self.path}: chunks of {variable!r} take {chunk.nbytes / 1e6:.0f} MB each and do "
                f"not fit into a buffer of {self._cache.capacity / 1e6:.0f} MB, so each read "
                "decodes them again; raise domain.buffer or write the data in smaller chunks"
            )
        return chunk

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_coords": None}

    def __repr__(self) -> str:
        return f"Store({self.path!r}: {listed(self.variables)})"


def _paths(path: str) -> list[str]:
    """The files that a path or a glob matches."""
    if "://" in path or Path(path).expanduser().exists() or not glob.has_magic(path):
        return [path]
    matches = sorted(glob.glob(str(Path(path).expanduser()), recursive=True))
    if not matches:
        raise DataError(f"{path}: no file matches; {CHECK_PATH}")
    return matches


def _box(
    path: str, variable: str, info: VariableInfo, where: Mapping[str, int | slice]
) -> tuple[Box, list[bool]]:
    """A slice (start, stop, step) for each axis; whether the axis is kept."""
    box, kept, left = [], [], len(where)
    for dim, size in zip(info.dims, info.shape, strict=True):
        cut = where.get(dim)
        left -= dim in where
        kept.append(cut is None or isinstance(cut, slice))
        if cut is None:
            box.append(slice(0, size, 1))
        elif isinstance(cut, slice):
            start, stop, step = cut.indices(size)
            if step < 0:
                raise DataError(f"{path}: {variable!r} cannot be read backwards along {dim!r}")
            box.append(slice(start, max(start, stop), step))
        else:
            index = cut + size if cut < 0 else cut
            if not 0 <= index < size:
                raise DataError(f"{path}: {variable!r} has {size} cells along {dim!r}, not {cut}")
            box.append(slice(index, index + 1, 1))
    if left:
        unknown = next(dim for dim in where if dim not in info.dims)
        raise DataError(
            f"{path}: variable {variable!r} has no dimension {unknown!r}; it has "
            f"{listed(info.dims) or 'none'}{nearest(unknown, info.dims)}"
        )
    return tuple(box), kept


def _chunk_bytes(piece: Piece) -> int:
    return piece.source.dtype.itemsize * prod(
        longest_chunk(starts) for starts in piece.source.starts
    )


def _sample(chunk: Array) -> bytes:
    """Bytes of evenly spaced values of a chunk."""
    flat = np.ravel(chunk)
    some = flat[:: max(1, flat.size // HASHED_VALUES)]
    return some.tobytes() if some.dtype.kind in "iufbcM" else repr(some.tolist()).encode()
