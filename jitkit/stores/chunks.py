"""Chunked arrays: random reads by many threads through an LRU cache of decoded chunks.

A `Source` returns whole chunks of one variable as stored. `read_box` assembles a box of cells from
the chunks that it overlaps, each read through a `ChunkCache` of bounded size.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jitkit.utils.types import Array

Box = tuple[slice, ...]


class Source(Protocol):
    """The chunks of a variable as stored. Pickles without open files."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    starts: tuple[Array, ...]
    """First cell of every chunk along each axis, then the size of the axis."""

    def chunk(self, index: tuple[int, ...]) -> Array:
        """The stored values of a chunk, possibly padded past the end of the array.

        Raises:
            Exception: of any kind, if it cannot be read; `chunk_name` identifies the chunk.
        """

    def chunk_name(self, index: tuple[int, ...]) -> str:
        """The chunk's key or another identification within its store."""

    def stamp(self, index: tuple[int, ...]) -> str:
        """A version of the chunk that changes on rewriting: size and time, or an entity tag."""


@runtime_checkable
class Direct(Source, Protocol):
    """A source sliced without cost, such as a memory-mapped file: its chunks need no cache."""

    def view(self, box: Box) -> Array:
        """The stored values of a box, not copied."""


def regular_starts(shape: Sequence[int], chunk: Sequence[int]) -> tuple[Array, ...]:
    """Start of every chunk and the size, for each axis of a regular chunk grid.

    >>> [list(map(int, axis)) for axis in regular_starts((5, 4), (2, 4))]
    [[0, 2, 4, 5], [0, 4]]
    """
    return tuple(
        np.array([*range(0, size, max(1, step)), size])
        for size, step in zip(shape, chunk, strict=True)
    )


def longest_chunk(starts: Array) -> int:
    """Size of the longest chunk along an axis; at least 1."""
    return int(np.diff(starts).max()) if len(starts) > 1 else 1


def chunk_box(source: Source, index: tuple[int, ...]) -> Box:
    """The box of a chunk, clipped to the array."""
    return tuple(
        slice(int(starts[i]), int(starts[i + 1]))
        for starts, i in zip(source.starts, index, strict=True)
    )


@dataclass
class Stats:
    """Counters of a cache: hits, decoded chunks and decoded bytes."""

    hits: int = 0
    decoded: int = 0
    decoded_bytes: int = 0


class ChunkCache:
    """LRU cache of decoded chunks, limited to ``capacity`` bytes.

    Chunks being decoded count too, each as large as the last one. Threads that request the same
    chunk wait for one decode. A chunk larger than ``capacity`` is returned but not cached. A forked
    process starts with an empty cache, because it lacks the threads that fill it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Array] = OrderedDict()
        self._pending: dict[Hashable, Future[Array]] = {}
        self.bytes_held = self._last_bytes = 0
        self.stats = Stats()

    def get(self, key: Hashable, decode: Callable[[], Array]) -> Array:
        """The chunk of a key, decoded by the first thread that requests it."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            chunk = self._kept.get(key)
            if chunk is not None:
                self._kept.move_to_end(key)
                self.stats.hits += 1
                return chunk
            pending = self._pending.get(key)
            if pending is None:
                future: Future[Array] = Future()
                self._pending[key] = future
                self._make_room(len(self._pending) * self._last_bytes)
            else:
                self.stats.hits += 1
        if pending is not None:
            return pending.result()
        return self._decode(key, decode, future)

    def _decode(self, key: Hashable, decode: Callable[[], Array], future: Future[Array]) -> Array:
        try:
            chunk = decode()
        except BaseException as error:
            with self._lock:
                del self._pending[key]
            future.set_exception(error)
            raise
        with self._lock:
            self.stats.decoded += 1
            self.stats.decoded_bytes += chunk.nbytes
            self._keep(key, chunk)
            del self._pending[key]
        future.set_result(chunk)
        return chunk

    def _keep(self, key: Hashable, chunk: Array) -> None:
        if chunk.nbytes > self.capacity:
            return
        self._last_bytes = chunk.nbytes
        self._make_room(chunk.nbytes)
        self._kept[key] = chunk
        self.bytes_held += chunk.nbytes

    def _make_room(self, size: int) -> None:
        while self._kept and self.bytes_held + size > self.capacity:
            _, old = self._kept.popitem(last=False)
            self.bytes_held -= old.nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {"capacity": self.capacity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["capacity"])  # type: ignore[misc]


Fetch = Callable[[Sequence[tuple[int, ...]]], Iterable[Array]]
"""Chunks by their indices, in the same order."""


def read_box(source: Source, box: Box, fetch: Fetch, dtype: np.dtype[Any]) -> Array:
    """The cells of a box, shape (lengths of the slices), as a new array of ``dtype``.

    Args:
        source: where the chunks come from; only its ``starts`` are used.
        box: for each axis a slice with start, stop and positive step, inside the array.
        fetch: returns chunks, possibly padded past the end of the array.
        dtype: dtype of the result; values are cast while copying.
    """
    cuts = [chunk_slices(starts, cut) for starts, cut in zip(source.starts, box, strict=True)]
    out = np.empty([len(range(cut.start, cut.stop, cut.step)) for cut in box], dtype)
    overlaps = list(itertools.product(*cuts))
    indices = [tuple(index for index, _, _ in each) for each in overlaps]
    for each, chunk in zip(overlaps, fetch(indices), strict=True):
        inside, target = (tuple(each_axis[i] for each_axis in each) for i in (1, 2))
        out[target] = chunk[inside]
    return out


def chunk_slices(starts: Array, cut: slice) -> list[tuple[int, slice, slice]]:
    """For each chunk that a slice of an axis overlaps: its index, slice in it, slice of the cut."""
    if cut.stop <= cut.start:
        return []
    if len(starts) == 2:  # one chunk, the usual case
        return [(0, cut, slice(0, len(range(cut.start, cut.stop, cut.step))))]
    first, last = np.searchsorted(starts, [cut.start, cut.stop - 1], side="right") - 1
    slices = []
    for index in range(int(first), int(last) + 1):
        begin, end = int(starts[index]), int(starts[index + 1])
        skipped = max(0, -(-(begin - cut.start) // cut.step))  # cells of the cut before this chunk
        inside = range(cut.start + skipped * cut.step, min(end, cut.stop), cut.step)
        if len(inside):
            in_chunk = slice(inside.start - begin, inside[-1] + 1 - begin, cut.step)
            slices.append((index, in_chunk, slice(skipped, skipped + len(inside))))
    return slices


def as_slices(entries: Array) -> tuple[slice, ...]:
    """Indices as the fewest slices with positive steps, in order.

    >>> as_slices(np.array([0, 1, 2, 5, 7, 9]))
    (slice(0, 3, 1), slice(5, 10, 2))
    """
    slices: list[slice] = []
    at = 0
    while at < len(entries):
        step = int(entries[at + 1] - entries[at]) if at + 1 < len(entries) else 1
        end = at + 1
        while step > 0 and end < len(entries) and entries[end] - entries[end - 1] == step:
            end += 1
        slices.append(slice(int(entries[at]), int(entries[end - 1]) + 1, max(1, step)))
        at = end
    return tuple(slices)


def block_shape(shape: tuple[int, ...], itemsize: int, most: int = 2**22) -> tuple[int, ...]:
    """Shape of a block of at most ``most`` bytes for unchunked data: whole trailing axes first.

    >>> block_shape((1000, 512, 1024), 4)
    (2, 512, 1024)
    """
    chunk, left = [], max(1, most // max(1, itemsize))
    for size in reversed(shape):
        chunk.append(max(1, min(size, left)))
        left //= max(1, size)
    return tuple(reversed(chunk))
