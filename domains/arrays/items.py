"""Items of arrays, read when they are asked for, and the same data in blocks for statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from jitkit.domains.arrays.conditions import Series
from jitkit.domains.arrays.coordinates import label
from jitkit.domains.arrays.plan import ArrayPlan
from jitkit.domains.arrays.read import ArrayVariable, Cut, read_channels
from jitkit.domains.arrays.splits import Places, shuffled_in_blocks
from jitkit.stores.chunks import stretches
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable

BLOCK_BYTES = 2**26  # of statistics, as float32; several are in memory at once
RUN_OF_SPANS = 8  # windows' lengths in a group: neighbours that share steps are read together


@dataclass(frozen=True, eq=False)
class Sample:
    """An item in physical units.

    Attributes:
        values: (C, X1..Xn) float32, NaN where missing; a window's steps are X1.
        cond: what it is told, by name: maps (channels, X1..Xn) as ``past`` and ``grids``, numbers
            and classes (None is missing) by their names in the recipe.
        place: where it begins in the store, by sample dimension; empty for what was sampled.
        name: the same in words.
    """

    values: Array
    cond: Mapping[str, Any] = field(default_factory=dict)
    place: Mapping[str, int] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, eq=False)
class Reading:
    """What is read for an item.

    Attributes:
        store, plan: the data.
        grids: other variables that are read at the same place.
        told: numbers and classes of a place, by name.
        window: steps of an item.
        past: steps before it.
        spacing: entries from one step to the next.
        buffer_bytes: decoded chunks that the store keeps.
        threads: threads that may read at once.
    """

    store: Readable
    plan: ArrayPlan
    grids: tuple[ArrayVariable, ...]
    told: Mapping[str, Series]
    window: int
    past: int
    spacing: int
    buffer_bytes: int
    threads: int

    @property
    def span(self) -> int:
        """Entries from the first step that is read for an item to the last."""
        return (self.window + self.past - 1) * self.spacing + 1


class ArrayItems(Sequence[Sample]):
    """The items of a split. Safe for threads; pickles without open files.

    Attributes:
        places: where they begin.
        threads: threads that may read at once.
    """

    def __init__(self, reading: Reading, places: Places) -> None:
        self._reading, self.places = reading, places
        self._cuts = reading.plan.cuts()
        self.threads = reading.threads

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self._read(self.places[range(len(self))[index]])

    def order(self, rng: np.random.Generator) -> Array:
        """The items of one epoch in the order to read them: a permutation, a function of ``rng``.

        Chunks are shuffled, as many as fill half the buffer make a block, and the items of a block
        are shuffled, so that a chunk is decoded once an epoch. Windows that reach into the next
        chunk decode it a second time; where windows share steps, neighbouring ones make a group.
        """
        groups, per_block = self._groups()
        return shuffled_in_blocks(groups, per_block, rng)

    def _read(self, at: Mapping[str, int]) -> Sample:
        reading = self._reading
        plan, past = reading.plan, reading.past
        entries = {dim: int(plan.entries[dim][at[dim]]) for dim in plan.sample}
        begin = at[plan.along]
        cond: dict[str, Any] = {name: s.at(at) for name, s in reading.told.items()}
        if reading.grids:
            cond["grids"] = self._channels(reading.grids, entries, begin)
        first = begin - past * reading.spacing
        steps = self._steps(plan.variables, entries, first, past + reading.window)
        values = steps[:, past:]
        if past:
            cond["past"] = self._past(steps[:, :past])
        if reading.window == 1:
            values = values[:, 0]
        return Sample(values, cond, entries, self._name(at))

    def _steps(
        self, variables: Sequence[ArrayVariable], entries: Mapping[str, int], begin: int, count: int
    ) -> Array:
        """Steps from a position on, (C, count, X1..Xn)."""
        plan, spacing = self._reading.plan, self._reading.spacing
        cuts: dict[str, Cut] = {**self._cuts, **entries}
        steps = begin + spacing * np.arange(count)
        cuts[plan.along] = stretches(plan.entries[plan.along][steps])
        return read_channels(self._reading.store, variables, cuts, (plan.along,), plan.axes)

    def _channels(
        self, variables: Sequence[ArrayVariable], entries: Mapping[str, int], begin: int
    ) -> Array:
        values = self._steps(variables, entries, begin, self._reading.window)
        return values[:, 0] if self._reading.window == 1 else values

    def _past(self, steps: Array) -> Array:
        """Earlier steps as channels, the oldest first, the same all along a window."""
        channels, past, *grid = steps.shape
        maps = np.moveaxis(steps, 1, 0).reshape(past * channels, *grid)
        if self._reading.window == 1:
            return maps
        return np.repeat(maps[:, None], self._reading.window, axis=1)

    def _name(self, at: Mapping[str, int]) -> str:
        values = self._reading.plan.values
        return ", ".join(f"{dim}={label(values[dim][position])}" for dim, position in at.items())

    def _groups(self) -> tuple[Array, int]:
        """The group of each item, and how many groups fill half the buffer."""
        reading = self._reading
        plan, half = reading.plan, reading.buffer_bytes // 2
        variables = (*plan.variables, *reading.grids)
        chunks = {dim: Chunks.of(reading.store, variables, dim) for dim in plan.sample}
        together = dict.fromkeys(chunks, 1)  # chunks of a group
        size = decoded_bytes(reading.store, variables, plan, together)
        if reading.span > 1:
            wanted = ceil(RUN_OF_SPANS * (reading.span - 1) / chunks[plan.along].longest)
            together[plan.along] = max(1, min(wanted, half // 4 // max(1, size)))
            size = decoded_bytes(reading.store, variables, plan, together)
        keys = {
            dim: chunks[dim].number(plan.entries[dim][starts]) // together[dim]
            for dim, starts in self.places.starts.items()
        }
        groups, _ = self.places.groups(keys)
        return groups, max(1, half // max(1, size))


@dataclass(frozen=True, eq=False)
class Chunks:
    """The chunks along a dimension, those of the variable whose are longest.

    Attributes:
        starts: first entry of each, then the size of the dimension.
    """

    starts: Array

    @classmethod
    def of(cls, store: Readable, variables: Sequence[ArrayVariable], dim: str) -> Chunks:
        """Along a dimension that at least one of the variables has."""
        return cls(min((store.starts(v.name, dim) for v in variables if dim in v.dims), key=len))

    @property
    def longest(self) -> int:
        """Entries of the longest."""
        return int(np.diff(self.starts).max(initial=1))

    def number(self, entries: Array) -> Array:
        """In which chunk each entry lies."""
        return np.searchsorted(self.starts, entries, side="right") - 1

    def cut(self, entries: Array, length: int) -> list[Array]:
        """Entries in order, cut to pieces of about ``length``: whole chunks, or parts of one."""
        number = self.number(entries)
        key = number // max(1, length // self.longest)
        if length < self.longest:
            key = key * self.longest + (entries - self.starts[number]) // length
        return np.split(entries, np.flatnonzero(np.diff(key)) + 1)


def decoded_bytes(
    store: Readable,
    variables: Sequence[ArrayVariable],
    plan: ArrayPlan,
    together: Mapping[str, int],
) -> int:
    """Memory of the chunks that are read for some neighbouring ones along sample dimensions.

    Args:
        store, plan: the data.
        variables: those that are read.
        together: chunks along each sample dimension.
    """
    total = 0
    for v in variables:
        described = store.variables[v.name]
        cells = 1
        for dim, size, chunk in zip(v.dims, described.shape, described.chunks, strict=True):
            whole = len(np.unique(plan.entries[dim] // chunk))
            cells *= min(size, together.get(dim, whole) * chunk)
        total += cells * described.dtype.itemsize
    return total


# Blocks for statistics


def block_places(
    store: Readable,
    plan: ArrayPlan,
    variables: Sequence[ArrayVariable],
    train: Array,
    most_values: int | None,
) -> list[dict[str, Array]]:
    """Where to read the training split once, each chunk of it together.

    Args:
        store, plan: the data.
        variables: whose chunks count.
        train: positions of training along the first sample dimension.
        most_values: numbers to look at, about; where there are more, blocks are spread evenly.

    Returns:
        For each block the entries along every sample dimension that its variables have.
    """
    dims = [dim for dim in plan.sample if any(dim in v.dims for v in variables)]
    entries = {dim: plan.entries[dim] for dim in dims}
    if plan.sample[0] in entries:
        entries[plan.sample[0]] = entries[plan.sample[0]][train]
    chunks = {dim: Chunks.of(store, variables, dim) for dim in dims}
    values = prod(plan.grid) * sum(len(v.channels) for v in variables)
    total = values * prod(len(entries[dim]) for dim in dims)
    part = most_values if most_values is not None and most_values < total else None
    most_bytes = BLOCK_BYTES if part is None else min(BLOCK_BYTES, part // 2)  # 8 blocks or more
    lengths = _block_lengths({d: chunks[d].longest for d in dims}, values * 4, most_bytes)
    parts = [chunks[dim].cut(entries[dim], lengths[dim]) for dim in dims]
    blocks = [dict(zip(dims, some, strict=True)) for some in product(*parts)]
    if part is None:
        return blocks
    count = max(1, len(blocks) * part // total)
    return [blocks[i * len(blocks) // count] for i in range(count)]


def _block_lengths(chunks: Mapping[str, int], item_bytes: int, most_bytes: int) -> dict[str, int]:
    """Entries of a block along each dimension: chunks, halved or doubled to a handy size."""
    lengths = dict(chunks)

    def size() -> int:
        return item_bytes * prod(lengths.values())

    while size() > most_bytes and max(lengths.values(), default=1) > 1:
        longest = max(lengths, key=lambda dim: lengths[dim])
        lengths[longest] = ceil(lengths[longest] / 2)
    last = next(reversed(lengths), None)
    while last is not None and size() < most_bytes // 8 and lengths[last] < 2**20:
        lengths[last] *= 2
    return lengths


def read_blocks(
    store: Readable,
    plan: ArrayPlan,
    variables: Sequence[ArrayVariable],
    places: Sequence[Mapping[str, Array]],
) -> Iterator[Array]:
    """Physical values (n, C, X1..Xn) of each block."""
    for place in places:
        cuts: dict[str, Cut] = {
            **plan.cuts(),
            **{dim: stretches(entries) for dim, entries in place.items()},
        }
        values = read_channels(store, variables, cuts, tuple(place), plan.axes)
        channels = len(values)
        lead = 1 + len(place)
        values = values.reshape(channels, -1, *values.shape[lead:])  # (C, n, X1..Xn)
        yield np.moveaxis(values, 1, 0)
