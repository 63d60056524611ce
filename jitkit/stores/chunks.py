"""Arrays in chunks, read at random by many threads: one decode a chunk, in bounded memory.

A `Source` hands out whole chunks of one variable as they are stored. `read_box` puts a box of cells
together from the chunks that it touches, each of them through a `ChunkCache`.
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
    """A variable as it is stored. Pickles without open files."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    starts: tuple[Array, ...]
    """First cell of every chunk along each axis, then the size of the axis."""

    def chunk(self, index: tuple[int, ...]) -> Array:
        """The stored values of a chunk, perhaps padded past the end of the array.

        Raises:
            Exception: of any kind, where it cannot be read; `named` says which it was.
        """

    def named(self, index: tuple[int, ...]) -> str:
        """The chunk's key, or how else to find it in its store."""

    def stamp(self, index: tuple[int, ...]) -> str:
        """What changes when the chunk is written anew: size and time, or an entity tag."""


@runtime_checkable
class Direct(Source, Protocol):
    """A source that costs nothing to cut, such as a map of a file: its chunks need no cache."""

    def cut(self, box: Box) -> Array:
        """The stored values of a box, not copied."""


def regular(shape: Sequence[int], chunk: Sequence[int]) -> tuple[Array, ...]:
    """Starts of equal chunks, the last of an axis cut at its end.

    >>> [list(map(int, axis)) for axis in regular((5, 4), (2, 4))]
    [[0, 2, 4, 5], [0, 4]]
    """
    return tuple(
        np.array([*range(0, size, max(1, step)), size])
        for size, step in zip(shape, chunk, strict=True)
    )


def longest(starts: Array) -> int:
    """Cells of the longest chunk along an axis; at least 1."""
    return int(np.diff(starts).max()) if len(starts) > 1 else 1


def as_box(source: Source, index: tuple[int, ...]) -> Box:
    """The cells of a chunk that lie inside the array."""
    return tuple(
        slice(int(starts[i]), int(starts[i + 1]))
        for starts, i in zip(source.starts, index, strict=True)
    )


@dataclass
class Stats:
    """What a cache has done: reads it answered from memory, chunks and bytes it had decoded."""

    hits: int = 0
    decoded: int = 0
    decoded_bytes: int = 0


class ChunkCache:
    """Chunks by key, the least recently used dropped first when they pass ``capacity`` bytes.

    Those that are being decoded count, each as large as the last one was. Two threads that want one
    chunk wait for one decode. A chunk larger than ``capacity`` is handed out and not kept. A fork
    starts empty, since the threads that would fill it are gone.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Array] = OrderedDict()
        self._coming: dict[Hashable, Future[Array]] = {}
        self.held = self._usual = 0
        self.stats = Stats()

    def get(self, key: Hashable, decode: Callable[[], Array]) -> Array:
        """The chunk of a key, decoded by the first who asks."""
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            chunk = self._kept.get(key)
            if chunk is not None:
                self._kept.move_to_end(key)
                self.stats.hits += 1
                return chunk
            coming = self._coming.get(key)
            if coming is None:
                mine: Future[Array] = Future()
                self._coming[key] = mine
                self._make_room(len(self._coming) * self._usual)
            else:
                self.stats.hits += 1
        if coming is not None:
            return coming.result()
        return self._decode(key, decode, mine)

    def _decode(self, key: Hashable, decode: Callable[[], Array], mine: Future[Array]) -> Array:
        try:
            chunk = decode()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            mine.set_exception(error)
            raise
        with self._lock:
            self.stats.decoded += 1
            self.stats.decoded_bytes += chunk.nbytes
            self._keep(key, chunk)
            del self._coming[key]
        mine.set_result(chunk)
        return chunk

    def _keep(self, key: Hashable, chunk: Array) -> None:
        if chunk.nbytes > self.capacity:
            return
        self._usual = chunk.nbytes
        self._make_room(chunk.nbytes)
        self._kept[key] = chunk
        self.held += chunk.nbytes

    def _make_room(self, size: int) -> None:
        while self._kept and self.held + size > self.capacity:
            _, old = self._kept.popitem(last=False)
            self.held -= old.nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {"capacity": self.capacity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["capacity"])  # type: ignore[misc]


Fetch = Callable[[Sequence[tuple[int, ...]]], Iterable[Array]]
"""Chunks by their indices, in the same order."""


def read_box(source: Source, box: Box, fetch: Fetch, dtype: np.dtype[Any]) -> Array:
    """The cells of a box, (slices' lengths), as ``dtype``; the array is the caller's own.

    Args:
        source: where the chunks come from; only its ``starts`` are used.
        box: for each axis a slice with start, stop and positive step, inside the array.
        fetch: gives chunks, perhaps longer than the part inside the array.
        dtype: of the result; numbers are cast as they are copied.
    """
    cuts = [parts(starts, cut) for starts, cut in zip(source.starts, box, strict=True)]
    out = np.empty([len(range(cut.start, cut.stop, cut.step)) for cut in box], dtype)
    touched = list(itertools.product(*cuts))
    indices = [tuple(number for number, _, _ in each) for each in touched]
    for each, chunk in zip(touched, fetch(indices), strict=True):
        inside, place = (tuple(each_axis[i] for each_axis in each) for i in (1, 2))
        out[place] = chunk[inside]
    return out


def parts(starts: Array, cut: slice) -> list[tuple[int, slice, slice]]:
    """For each chunk that a cut of an axis touches: its number, cells in it, cells of the cut."""
    if cut.stop <= cut.start:
        return []
    if len(starts) == 2:  # one chunk, which most axes are
        return [(0, cut, slice(0, len(range(cut.start, cut.stop, cut.step))))]
    first, last = np.searchsorted(starts, [cut.start, cut.stop - 1], side="right") - 1
    found = []
    for number in range(int(first), int(last) + 1):
        begin, end = int(starts[number]), int(starts[number + 1])
        skipped = max(0, -(-(begin - cut.start) // cut.step))  # cells of the cut before this chunk
        inside = range(cut.start + skipped * cut.step, min(end, cut.stop), cut.step)
        if len(inside):
            here = slice(inside.start - begin, inside[-1] + 1 - begin, cut.step)
            found.append((number, here, slice(skipped, skipped + len(inside))))
    return found


def stretches(entries: Array) -> tuple[slice, ...]:
    """Indices as the fewest slices with positive steps, read one after the other.

    >>> stretches(np.array([0, 1, 2, 5, 7, 9]))
    (slice(0, 3, 1), slice(5, 10, 2))
    """
    found: list[slice] = []
    at = 0
    while at < len(entries):
        step = int(entries[at + 1] - entries[at]) if at + 1 < len(entries) else 1
        end = at + 1
        while step > 0 and end < len(entries) and entries[end] - entries[end - 1] == step:
            end += 1
        found.append(slice(int(entries[at]), int(entries[end - 1]) + 1, max(1, step)))
        at = end
    return tuple(found)


def block(shape: tuple[int, ...], itemsize: int, most: int = 2**22) -> tuple[int, ...]:
    """A chunk of at most ``most`` bytes for data that have none: whole trailing axes.

    >>> block((1000, 512, 1024), 4)
    (2, 512, 1024)
    """
    chunk, left = [], max(1, most // max(1, itemsize))
    for size in reversed(shape):
        chunk.append(max(1, min(size, left)))
        left //= max(1, size)
    return tuple(reversed(chunk))
