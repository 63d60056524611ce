"""Zarr v2 and v3: where a store's chunks lie and how they are decoded.

zarr-python and xarray read the metadata; chunks are read here, since both send every chunk through
one event loop. Arrays with codecs that `codecs` does not know are read by zarr-python all the same.
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
from jitkit.stores.chunks import ChunkCache, Source, as_box, regular
from jitkit.stores.codecs import Decoder, of_zarr_v2, of_zarr_v3
from jitkit.stores.locations import Folder, Lazy, Location
from jitkit.stores.opened import Opened, of_sources
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

METADATA = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")

ABSENT = 2**64 - 1  # offset and length of a chunk that its shard does not hold
INDEX_BYTES = 2**24  # of shards' indices that are kept, for each variable


@dataclass(frozen=True)
class Keys:
    """Names of an array's chunks: ``prefix`` and the chunk's numbers between separators."""

    prefix: str
    separator: str
    alone: str  # the name of the only chunk of an array without axes

    def __call__(self, index: tuple[int, ...]) -> str:
        return self.prefix + (self.separator.join(map(str, index)) if index else self.alone)


class ZarrChunks:
    """An array with a key for each chunk."""

    def __init__(
        self, place: Location, keys: Keys, shape: tuple[int, ...], decoder: Decoder, fill: Any
    ) -> None:
        self.shape, self.dtype = shape, decoder.dtype
        self.starts = regular(shape, decoder.shape)
        self._place, self._keys, self._decoder, self._fill = place, keys, decoder, fill

    def named(self, index: tuple[int, ...]) -> str:
        return self._keys(index)

    def stamp(self, index: tuple[int, ...]) -> str:
        return self._place.stamp(self._keys(index))

    def chunk(self, index: tuple[int, ...]) -> Array:
        data = self._place.read(self._keys(index))
        if data is None:  # chunks of nothing but the fill value need not be written
            return np.broadcast_to(self._fill, self._decoder.shape)
        return self._decoder(data)


class ShardChunks:
    """An array whose keys are shards: files of many chunks, each found by the shard's index."""

    def __init__(
        self,
        place: Location,
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
        self.starts = regular(shape, decoder.shape)
        self._per_shard = tuple(s // c for s, c in zip(shard, decoder.shape, strict=True))
        self._place, self._keys, self._decoder, self._fill = place, keys, decoder, fill
        self._index_first = index_first
        codecs = [{"name": "bytes"}, *([{"name": "crc32c"}] if index_checked else [])]
        index = of_zarr_v3(codecs, (*self._per_shard, 2), np.dtype("<u8"))
        assert index is not None
        self._index_decoder = index
        self._index_size = prod(index.shape) * 8 + 4 * index_checked
        self._indices = ChunkCache(INDEX_BYTES)

    def named(self, index: tuple[int, ...]) -> str:
        return f"{self._keys(self._shard(index))} (part {'.'.join(map(str, self._part(index)))})"

    def stamp(self, index: tuple[int, ...]) -> str:
        return self._place.stamp(self._keys(self._shard(index)))

    def _shard(self, index: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i // n for i, n in zip(index, self._per_shard, strict=True))

    def _part(self, index: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(i % n for i, n in zip(index, self._per_shard, strict=True))

    def chunk(self, index: tuple[int, ...]) -> Array:
        key = self._keys(self._shard(index))
        where = self._indices.get(key, lambda: self._read_index(key))
        start, length = map(int, where[self._part(index)])
        if start == length == ABSENT:
            return np.broadcast_to(self._fill, self._decoder.shape)
        data = self._place.read(key, start, length)
        if data is None:
            raise OSError("the shard is gone")
        return self._decoder(data)

    def _read_index(self, key: str) -> Array:
        """First byte and length of every chunk of a shard, (parts along each axis, 2)."""
        start = 0 if self._index_first else -self._index_size
        data = self._place.read(key, start, self._index_size)
        if data is None:
            return np.full(self._index_decoder.shape, ABSENT, np.uint64)
        return self._index_decoder(data)


class ZarrArray:
    """An array read by zarr-python."""

    def __init__(self, make: Callable[[], Any], array: Any, name: str) -> None:
        self.shape, self.dtype = tuple(array.shape), np.dtype(array.dtype)
        self.starts = regular(self.shape, array.chunks)
        self._array, self._name = Lazy(make), name

    def named(self, index: tuple[int, ...]) -> str:
        return f"{self._name}/{'.'.join(map(str, index))}"

    def stamp(self, index: tuple[int, ...]) -> str:
        return ""

    def chunk(self, index: tuple[int, ...]) -> Array:
        return np.asarray(self._array()[as_box(self, index)])


def zarr_source(array: Any, place: Location, make: Callable[[], Any]) -> Source:
    """The source of an open Zarr array.

    Args:
        array: of zarr-python.
        place: of the store that it lies in.
        make: opens the array again, in another process.
    """
    meta = array.metadata.to_dict()
    path = array.path.strip("/")
    prefix = f"{path}/" if path else ""
    source = (_v2 if meta["zarr_format"] == 2 else _v3)(array, meta, prefix, place)
    return source or ZarrArray(make, array, path)


def _v2(array: Any, meta: Mapping[str, Any], path: str, place: Location) -> Source | None:
    dtype = np.dtype(array.dtype)
    stored = meta["dtype"]
    if not isinstance(stored, str) or dtype.kind not in "iufb":
        return None
    decoder = of_zarr_v2(meta, np.dtype(stored))
    keys = Keys(path, meta.get("dimension_separator") or ".", "0")
    if decoder is None:
        return None
    return ZarrChunks(place, keys, tuple(meta["shape"]), decoder, _fill(array))


def _v3(array: Any, meta: Mapping[str, Any], path: str, place: Location) -> Source | None:
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
        return _sharded(array, codecs[0]["configuration"], place, keys, chunk, dtype)
    decoder = of_zarr_v3(codecs, chunk, dtype)
    return None if decoder is None else ZarrChunks(place, keys, shape, decoder, _fill(array))


def _sharded(
    array: Any,
    settings: Mapping[str, Any],
    place: Location,
    keys: Keys,
    shard: tuple[int, ...],
    dtype: np.dtype[Any],
) -> Source | None:
    decoder = of_zarr_v3(settings["codecs"], tuple(settings["chunk_shape"]), dtype)
    index = [codec["name"] for codec in settings["index_codecs"]]
    if decoder is None or index not in (["bytes"], ["bytes", "crc32c"]):
        return None
    return ShardChunks(
        place,
        keys,
        tuple(array.shape),
        shard,
        decoder,
        _fill(array),
        index_first=settings.get("index_location", "end") == "start",
        index_checked="crc32c" in index,
    )


def _fill(array: Any) -> Array:
    """What stands in chunks that were never written."""
    return np.asarray(0 if array.fill_value is None else array.fill_value, array.dtype)


@contextmanager
def opened_zarr(
    path: str, place: Location, make_store: Callable[[], Any], group: str | None
) -> Iterator[Opened]:
    """The contents of a Zarr group, or of a lone array, which is then called ``values``.

    Args:
        path: as the user gave it, for messages.
        place: where the bytes of its keys are read.
        make_store: makes what zarr-python opens, here and in other processes.
        group: path of a group in it.

    Raises:
        DataError: no such group, a group without arrays, metadata that cannot be read.
    """
    import zarr

    store = make_store()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of data types that the specification does not have yet
        node = _node(path, store, group)
        if isinstance(node, zarr.Array):
            arrays = {"values": node}
        else:
            arrays = {name: array for name, array in node.arrays()}
            if not arrays:
                raise DataError(f"{path}: {_no_arrays(node, group)}")
        sources = {
            name: zarr_source(array, place, partial(_array, make_store, array.path))
            for name, array in arrays.items()
        }
        yield Opened(_raw(store, group, node, arrays, sources), sources, place)


def _node(path: str, store: Any, group: str | None) -> Any:
    """The group, or the array that stands in its place."""
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
    known = _groups(zarr.open_group(store, mode="r"))
    raise DataError(
        f"{path}: no group {group!r}; it has {listed(known, 20)}{nearest(group, known)}"
    )


def _groups(node: Any) -> list[str]:
    """Paths of all groups below one that hold arrays."""
    below = [child for _, child in node.groups()]
    return [
        path
        for child in below
        for path in ([child.path] if any(True for _ in child.arrays()) else []) + _groups(child)
    ]


def _no_arrays(node: Any, group: str | None) -> str:
    known = _groups(node)
    where = f"group {group!r}" if group else "its top"
    return f"{where} holds no arrays" + (f"; give domain.group: {listed(known, 20)}" * bool(known))


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
    """Every array as a lazy, undecoded variable; unnamed axes are named by their place."""
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
        return of_sources(sources, Folder("")).raw
    consolidated = node.metadata.consolidated_metadata is not None
    return xarray.open_zarr(
        store,
        group=group,
        chunks=None,
        decode_cf=False,
        consolidated=consolidated,
        zarr_format=node.metadata.zarr_format,
    )
