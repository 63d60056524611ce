"""Zarr v2 and v3 reader, with shards: parallel chunk reads without zarr-python's event loop.

zarr-python and xarray read the metadata; chunks are read here. Arrays with codecs that `codecs`
does not support are read by zarr-python.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError, listed, nearest
from jitkit.stores.chunks import ChunkCache, Source, chunk_box, regular_starts
from jitkit.stores.codecs import Decoder, zarr_v2_decoder, zarr_v3_decoder
from jitkit.stores.locations import Folder, Lazy, Location
from jitkit.stores.opened import Opened, from_sources
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

METADATA = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")

ABSENT = 2**64 - 1  # offset and length of a chunk that is not in its shard
INDEX_BYTES = 2**24  # cache of shard indices, per variable


@dataclass(frozen=True)
class Keys:
    """Chunk keys of an array: ``prefix`` and the chunk's indices joined by ``separator``."""

    prefix: str
    separator: str
    scalar: str  # the key of the only chunk of an array without axes

    def __call__(self, index: tuple[int, ...]) -> str:
        return self.prefix + (self.separator.join(map(str, index)) if index else self.scalar)


class ZarrChunks:
    """An array with one key per chunk."""

    def __init__(
        self, location: Location, keys: Keys, shape: tuple[int, ...], decoder: Decoder, fill: Any
    ) -> None:
        self.shape, self.dtype = shape, decoder.dtype
        self.starts = regular_starts(shape, decoder.shape)
        self._location, self._keys, self._decoder, self._fill = location, keys, decoder, fill

    def chunk_name(self, index: tuple[int, ...]) -> str:
        return self._keys(index)

    def stamp(self, index: tuple[int, ...]) -> str:
        return self._location.stamp(self._keys(index))

    def chunk(self, index: tuple[int, ...]) -> Array:
        data = self._location.read(self._keys(index))
        if data is None:  # chunks with only the fill value may be absent
            return np.broadcast_to(self._fill, self._decoder.shape)
        return self._decoder(data)


class ShardChunks:
    """A sharded array: each key is a shard of many chunks, located by the shard's index."""

    def __init__(
        self,
        location: Location,
        keys: Keys,
        shape: tuple[int, ...],
        shard: tuple[int, ...],
        decoder: Decoder,
        fill: Any,
        *,
        index_first: bool,
        index_checked: bool,
    ) -> None:
        self.shape, self.dtype = shape, decoder.dtype
        self.starts = regular_starts(shape, decoder.shape)
        self._per_shard = tuple(s // c for s, c in zip(shard, decoder.shape, strict=True))
        self._location, self._keys, self._decoder, self._fill = location, keys, decoder, fill
        self._index_first = index_first
        codecs = [{"name": "bytes"}, *([{"name": "crc32c"}] if index_checked else [])]
        index = zarr_v3_decoder(codecs, (*self._per_shard, 2), np.dtype("<u8"))
        assert index is not None
        self._index_decoder = index
        self._index_size = prod(index.shape) * 8 + 4 * index_checked
        self._indices = ChunkCache(INDEX_BYTES)

    def chunk_name(self, index: tuple[int, ...]) -> str:
        return f"{self._keys(self._shard(index))} (part {'.'.join(map(str, self._part(index)))})"

    def stamp(self, index: tuple[int, ...]) -> str:
        return self._location.stamp(self._keys(self._shard(index)))

    def _shard(self, index: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i // n for i, n in zip(index, self._per_shard, strict=True))

    def _part(self, index: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i % n for i, n in zip(index, self._per_shard, strict=True))

    def chunk(self, index: tuple[int, ...]) -> Array:
        key = self._keys(self._shard(index))
        entries = self._indices.get(key, lambda: self._read_index(key))
        start, length = map(int, entries[self._part(index)])
        if start == length == ABSENT:
            return np.broadcast_to(self._fill, self._decoder.shape)
        data = self._location.read(key, start, length)
        if data is None:
            raise OSError("the shard no longer exists")
        return self._decoder(data)

    def _read_index(self, key: str) -> Array:
        """Byte offset and length of every chunk of a shard, (parts along each axis, 2)."""
        start = 0 if self._index_first else -self._index_size
        data = self._location.read(key, start, self._index_size)
        if data is None:
            return np.full(self._index_decoder.shape, ABSENT, np.uint64)
        return self._index_decoder(data)


class ZarrArray:
    """An array read by zarr-python."""

    def __init__(self, make: Callable[[], Any], array: Any, name: str) -> None:
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        self.starts = regular_starts(self.shape, array.chunks)
        self._array, self._name = Lazy(make), name

    def chunk_name(self, index: tuple[int, ...]) -> str:
        return f"{self._name}/{'.'.join(map(str, index))}"

    def stamp(self, index: tuple[int, ...]) -> str:
        return ""

    def chunk(self, index: tuple[int, ...]) -> Array:
        return np.asarray(self._array()[chunk_box(self, index)])


def zarr_source(array: Any, location: Location, make: Callable[[], Any]) -> Source:
    """The source of an open Zarr array.

    Args:
        array: a zarr-python array.
        location: location of its store.
        make: reopens the array in another process.
    """
    meta = array.metadata.to_dict()
    path = array.path.strip("/")
    prefix = f"{path}/" if path else ""
    source = (_v2 if meta["zarr_format"] == 2 else _v3)(array, meta, prefix, location)
    return source or ZarrArray(make, array, path)


def _v2(array: Any, meta: Mapping[str, Any], path: str, location: Location) -> Source | None:
    dtype = np.dtype(array.dtype)
    stored = meta["dtype"]
    if not isinstance(stored, str) or dtype.kind not in "iufb":
        return None
    decoder = zarr_v2_decoder(meta, np.dtype(stored))
    keys = Keys(path, meta.get("dimension_separator") or ".", "0")
    if decoder is None:
        return None
    return ZarrChunks(location, keys, tuple(meta["shape"]), decoder, _fill(array))


def _v3(array: Any, meta: Mapping[str, Any], path: str, location: Location) -> Source | None:
    dtype = np.dtype(array.dtype)
    grid, naming = meta["chunk_grid"], meta["chunk_key_encoding"]
    if grid["name"] != "regular" or meta.get("storage_transformers") or dtype.kind not in "iufb":
        return None
    style = naming["name"]
    separator = (naming.get("configuration") or {}).get(
        "separator", "/" if style == "default" else "."
    )
    if style == "default":
        keys = Keys(f"{path}c{separator}" if meta["shape"] else f"{path}c", separator, "")
    elif style == "v2":
        keys = Keys(path, separator, "0")
    else:
        return None
    shape, chunk = tuple(meta["shape"]), tuple(grid["configuration"]["chunk_shape"])
    codecs = meta["codecs"]
    if codecs[0]["name"] == "sharding_indexed":
        return _sharded(array, codecs[0]["configuration"], location, keys, chunk, dtype)
    decoder = zarr_v3_decoder(codecs, chunk, dtype)
    return None if decoder is None else ZarrChunks(location, keys, shape, decoder, _fill(array))


def _sharded(
    array: Any,
    settings: Mapping[str, Any],
    location: Location,
    keys: Keys,
    shard: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Source | None:
    decoder = zarr_v3_decoder(settings["codecs"], tuple(settings["chunk_shape"]), dtype)
    index = [codec["name"] for codec in settings["index_codecs"]]
    if decoder is None or index not in (["bytes"], ["bytes", "crc32c"]):
        return None
    return ShardChunks(
        location,
        keys,
        tuple(array.shape),
        shard,
        decoder,
        _fill(array),
        index_first=settings.get("index_location", "end") == "start",
        index_checked="crc32c" in index,
    )


def _fill(array: Any) -> Array:
    """The fill value of chunks that were never written."""
    return np.asarray(0 if array.fill_value is None else array.fill_value, array.dtype)


@contextmanager
def open_zarr(
    path: str, location: Location, make_store: Callable[[], Any], group: str | None
) -> Iterator[Opened]:
    """Open a Zarr group, or a single array, which is then called ``values``.

    Args:
        path: as given by the user, for messages.
        location: from which the keys are read.
        make_store: makes the store for zarr-python, here and in other processes.
        group: path of a group in the store.

    Raises:
        DataError: no such group, a group without arrays, unreadable metadata.
    """
    import zarr

    store = make_store()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about data types without a specification
        node = _node(path, store, group)
        if isinstance(node, zarr.Array):
            arrays = {"values": node}
        else:
            arrays = {name: array for name, array in node.arrays()}
            if not arrays:
                raise DataError(f"{path}: {_no_arrays(node, group)}")
        sources = {
            name: zarr_source(array, location, partial(_array, make_store, array.path))
            for name, array in arrays.items()
        }
        yield Opened(_raw(store, group, node, arrays, sources), sources, location)


def _node(path: str, store: Any, group: str | None) -> Any:
    """The group or array at a path of the store."""
    import zarr

    try:
        return zarr.open_group(store, path=group or "", mode="r")
    except Exception as error:
        try:
            return zarr.open_array(store, path=group or "", mode="r")
        except Exception:
            if group is None:
                why = " ".join(str(error).split())
                raise DataError(f"{path}: its Zarr metadata cannot be read: {why}") from error
    groups = _groups(zarr.open_group(store, mode="r"))
    raise DataError(
        f"{path}: no group {group!r}; it has {listed(groups, 20)}{nearest(group, groups)}"
    )


def _groups(node: Any) -> list[str]:
    """Paths of all groups with arrays inside a group."""
    children = [child for _, child in node.groups()]
    return [
        path
        for child in children
        for path in ([child.path] if any(True for _ in child.arrays()) else []) + _groups(child)
    ]


def _no_arrays(node: Any, group: str | None) -> str:
    groups = _groups(node)
    where = f"group {group!r}" if group else "the root"
    return f"{where} has no arrays" + (f"; give domain.group: {listed(groups, 20)}" * bool(groups))


def _array(make_store: Callable[[], Any], path: str) -> Any:
    import zarr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zarr.open_array(make_store(), path=path, mode="r")


def _raw(
    store: Any,
    group: str | None,
    node: Any,
    arrays: Mapping[str, Any],
    sources: Mapping[str, Source],
) -> xarray.Dataset:
    """Every array as a lazy, undecoded variable; unnamed axes get names by position."""
    import xarray

    v3 = node.metadata.zarr_format == 3
    named = [
        array.metadata.dimension_names if v3 else array.attrs.get("_ARRAY_DIMENSIONS")
        for array in arrays.values()
    ]
    if (
        "values" in arrays
        and arrays["values"] is node
        or any(
            dims is None and array.ndim for dims, array in zip(named, arrays.values(), strict=True)
        )
    ):
        return from_sources(sources, Folder("")).raw
    consolidated = node.metadata.consolidated_metadata is not None
    return xarray.open_zarr(
        store,
        group=group,
        chunks=None,
        decode_cf=False,
        consolidated=consolidated,
        zarr_format=node.metadata.zarr_format,
    )
