"""Any array file or store, read at random: Zarr, NetCDF, HDF5, NumPy; on disk or in object stores.

`Store` says which variables there are and hands out boxes of their cells in physical units, through
a cache of chunks in bounded memory. It only reads.
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
from jitkit.stores.chunks import Box, ChunkCache, Direct, Fetch, Stats, longest, read_box
from jitkit.stores.concat import joined
from jitkit.stores.fill_values import Fill, fills_by_name, with_fill
from jitkit.stores.locations import Lazy
from jitkit.stores.open import CHECK_PATH
from jitkit.stores.variables import Contents, Described, Piece, Variable, contents
from jitkit.utils.console import warn
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

__all__ = ["Described", "Readable", "Store"]

FILLED = 0.85  # of the buffer with chunks: the C library keeps some of what is freed
REQUESTS = 32  # chunks of one read that are fetched at once from an object store
MARKED = 4  # chunks of a variable that a fingerprint looks into
MARKED_NUMBERS = 2**14  # numbers of each that it takes
MARKED_BYTES = {False: 2**28, True: 2**25}  # of chunks that it decodes, on disk and from afar


class Readable(Protocol):
    """What is read like a `Store`: one itself, or variables that are made of those of others.

    Safe for threads; pickles without open files.
    """

    path: str
    attrs: dict[str, Any]

    @property
    def variables(self) -> Mapping[str, Described]:
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
    """Variables of a file, a group, a Zarr store, or files joined along one dimension.

    Safe for threads. Pickles without open files and without its cache, and reopens at the first
    read, as workers that are spawned need; after a fork it starts with an empty cache.

    Attributes:
        path, group, options: as they were given.
        variables: data variables by name, also those without sample dimensions; no coordinates, and
            none of what belongs to them (bounds, grid mappings).
        attrs: global attributes.
    """

    variables: Mapping[str, Described]
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
                a glob of any of these, which are joined along the one dimension whose coordinate
                differs; s3://, gs://, az:// or http(s):// address.
            group: of a Zarr store or an HDF5 file, such as ``"forecast/surface"``.
            options: for addresses: anonymous, endpoint, region, allow_http, retries.
            buffer_bytes: of decoded chunks that are kept.
            fill: physical values that mean "missing" beside those that are declared: one for all
                data variables, or one for each by name.

        Raises:
            DataError: nothing there, an unknown format (the text says what to convert with), a
                group that is not there, files that cannot be joined.
        """
        self.path, self.group, self.options = str(path), group, dict(options or {})
        self._remote = "://" in self.path
        self._cache = ChunkCache(int(FILLED * buffer_bytes))
        self._pool = Lazy(partial(ThreadPoolExecutor, REQUESTS, "jitkit-store"))
        self._warned: set[str] = set()
        found = self._open()
        self._coords: xarray.Dataset | None = found.coords
        self.attrs = found.attrs
        variables = dict(found.variables)
        self._fills = {} if fill is None else fills_by_name(fill, variables, self.path)
        variables |= {name: with_fill(variables[name], f) for name, f in self._fills.items()}
        self.variables = {name: v.described for name, v in variables.items()}
        self._variables = found.inner | variables

    def _open(self) -> Contents:
        paths = _paths(self.path)
        parts = [contents(path, self.group, self.options) for path in paths]
        return parts[0] if len(parts) == 1 else joined(parts, self.path)

    @property
    def coords(self) -> xarray.Dataset:
        """Coordinates alone, in memory and decoded: 1-D, 2-D and scalar ones, with attributes.

        Times are datetime64, or cftime where the calendar has no such. Bounds are left out.
        """
        if self._coords is None:
            self._coords = self._open().coords
        return self._coords

    @property
    def stats(self) -> Stats:
        """Hits, decoded chunks and their bytes since this process first read."""
        return self._cache.stats

    def read(self, variable: str, where: Mapping[str, int | slice] | None = None) -> Array:
        """Physical values of a box of cells, float32, NaN where missing.

        Args:
            variable: a name of `variables`, or of a numeric coordinate.
            where: dimension to index or slice, as in NumPy but with positive steps; dimensions
                that are not named are taken whole.

        Returns:
            The dimensions in the variable's order, those indexed by a number dropped. The array is
            the caller's own.

        Raises:
            DataError: no such variable or dimension, an index out of range, a variable that is not
                numeric, or a chunk that cannot be read (store, variable and chunk are named).
        """
        found = self._found(variable)
        if not found.described.numeric:
            dtype = found.described.dtype
            raise DataError(f"{self.path}: {variable!r} holds no real numbers but {dtype}")
        return self._gather(variable, found, where or {}, np.dtype(np.float32), decoded=True)

    def read_raw(self, variable: str, where: Mapping[str, int | slice] | None = None) -> Array:
        """The same box as it is stored: packed numbers, integers, bool; text and times decoded.

        Raises:
            DataError: as `read`.
        """
        found = self._found(variable)
        dtype = found.described.dtype
        stored = {piece.decode.stored for piece in found.pieces if piece.decode is not None}
        if stored and dtype.kind != "b":
            dtype = np.result_type(*stored)
        return self._gather(variable, found, where or {}, dtype, decoded=False)

    def starts(self, variable: str, dim: str) -> Array:
        """First cell of every chunk along a dimension, then its size.

        Chunks of one file are equal but for the last; those of joined files need not be.
        """
        found = self._found(variable)
        _box(self.path, variable, found.described, {dim: slice(None)})  # or there is no such
        axis = found.described.dims.index(dim)
        if axis != found.axis:
            return found.pieces[0].source.starts[axis]
        each = [
            piece.source.starts[axis][:-1] + start
            for piece, start in zip(found.pieces, found.starts, strict=False)
        ]
        return np.concatenate([*each, [found.described.shape[axis]]])

    def alike(self, variable: str) -> bool:
        """Whether one dtype, scale, offset and set of fill values hold for all of its files."""
        return (
            len({(piece.source.dtype, piece.decode) for piece in self._found(variable).pieces}) == 1
        )

    def fingerprint(self, variables: Iterable[str] | None = None, *, times: bool = True) -> str:
        """A hash that changes when the data do, from metadata, sizes and numbers of a few chunks.

        Args:
            variables: those that matter; all where not given.
            times: take in when files were changed, or their entity tags: so a change anywhere in a
                file is found, and a copy is taken for other data.

        Raises:
            DataError: as `read`.
        """
        digest = hashlib.sha256()
        marks = []
        for name in sorted(self._variables if variables is None else set(variables)):
            d = self._found(name).described
            told = [name, d.dims, d.shape, str(d.dtype), d.chunks, d.attrs, d.encoding]
            digest.update(repr(told).encode())
            if name in self._fills:
                digest.update(repr(self._fills[name]).encode())
            marks += [(turn, name, *at) for turn, at in enumerate(self._found(name).spread(MARKED))]
        marks.sort()  # the first chunk of every variable, then the second, while there is leave
        if times:
            ask = self._pool().map if self._remote else map
            digest.update("\n".join(ask(self._stamp, marks)).encode())
        left = MARKED_BYTES[self._remote]
        for _, name, number, index in marks:
            piece = self._found(name).pieces[number]
            left -= _chunk_bytes(piece)
            if left >= 0:
                digest.update(_some(self._chunk(name, number, piece, index)))
        return digest.hexdigest()

    def _stamp(self, mark: tuple[int, str, int, tuple[int, ...]]) -> str:
        _, name, number, index = mark
        return self._found(name).pieces[number].source.stamp(index)

    def _found(self, variable: str) -> Variable:
        found = self._variables.get(variable)
        if found is None:
            raise DataError(
                f"{self.path}: no variable {variable!r}; it has {listed(self._variables, 20)}"
                f"{nearest(variable, self._variables)}"
            )
        return found

    def _gather(
        self,
        variable: str,
        found: Variable,
        where: Mapping[str, int | slice],
        dtype: np.dtype[Any],
        *,
        decoded: bool,
    ) -> Array:
        box, kept = _box(self.path, variable, found.described, where)
        boxes = list(found.touched(box))
        shape = [len(range(cut.start, cut.stop, cut.step)) for cut in box]
        if len(boxes) == 1:
            number, part, _ = boxes[0]
            out = self._piece(variable, number, found.pieces[number], part, decoded)
            out = out.astype(dtype, copy=False)
        else:
            out = np.empty(shape, dtype)
            for number, part, place in boxes:
                cells = self._piece(variable, number, found.pieces[number], part, decoded)
                out[(slice(None),) * found.axis + (place,)] = cells
        return out.reshape([size for size, keep in zip(shape, kept, strict=True) if keep])

    def _piece(self, variable: str, number: int, piece: Piece, box: Box, decoded: bool) -> Array:
        """A box of one file, as `Variable` is; the array is the caller's own."""
        decode = piece.decode
        source = piece.source
        if decode is None:
            dtype = source.dtype
        else:
            dtype = decode.reads_as if decoded else decode.stored
        if isinstance(source, Direct):
            cells = source.cut(box)
            raw = np.array(decode.signed(cells) if decode else cells, dtype)
        else:
            raw = read_box(source, box, self._fetch(variable, number, piece), dtype)
        return decode(raw) if decoded and decode is not None else raw

    def _fetch(self, variable: str, number: int, piece: Piece) -> Fetch:
        """Chunks of a piece for `read_box`; several requests at once where each takes long."""

        def get(index: tuple[int, ...]) -> Array:
            chunk = self._chunk(variable, number, piece, index)
            return piece.decode.signed(chunk) if piece.decode else chunk

        if not self._remote:
            return partial(map, get)
        most = self._cache.capacity // (4 * _chunk_bytes(piece))
        at_once = max(1, min(REQUESTS, most))

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
        except Exception as error:  # codecs and files raise almost anything
            why = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{piece.path}: variable {variable!r}, chunk {piece.source.named(index)}: {why}"
            ) from error
        if chunk.nbytes > self._cache.capacity and variable not in self._warned:
            self._warned.add(variable)
            warn(
                f"{self.path}: chunks of {variable!r} take {chunk.nbytes / 1e6:.0f} MB each and do "
                f"not fit into a buffer of {self._cache.capacity / 1e6:.0f} MB, so that each read "
                "decodes them anew; raise domain.buffer or write the data in smaller chunks"
            )
        return chunk

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_coords": None}

    def __repr__(self) -> str:
        return f"Store({self.path!r}: {listed(self.variables)})"


def _paths(path: str) -> list[str]:
    """The files that a path or a glob names."""
    if "://" in path or Path(path).expanduser().exists() or not glob.has_magic(path):
        return [path]
    found = sorted(glob.glob(str(Path(path).expanduser()), recursive=True))
    if not found:
        raise DataError(f"{path}: no file matches; {CHECK_PATH}")
    return found


def _box(
    path: str, variable: str, described: Described, where: Mapping[str, int | slice]
) -> tuple[Box, list[bool]]:
    """A slice for each axis, with start, stop and step; whether the axis stays."""
    box, kept, left = [], [], len(where)
    for dim, size in zip(described.dims, described.shape, strict=True):
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
        odd = next(dim for dim in where if dim not in described.dims)
        raise DataError(
            f"{path}: variable {variable!r} has no dimension {odd!r}; it has "
            f"{listed(described.dims) or 'none'}{nearest(odd, described.dims)}"
        )
    return tuple(box), kept


def _chunk_bytes(piece: Piece) -> int:
    return piece.source.dtype.itemsize * prod(longest(starts) for starts in piece.source.starts)


def _some(chunk: Array) -> bytes:
    """Numbers spread over a chunk."""
    flat = np.ravel(chunk)
    some = flat[:: max(1, flat.size // MARKED_NUMBERS)]
    return some.tobytes() if some.dtype.kind in "iufbcM" else repr(some.tolist()).encode()
