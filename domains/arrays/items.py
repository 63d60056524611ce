"""Array items: lazy reading of samples, and reading the training split in blocks for statistics."""

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
from jitkit.domains.arrays.read import ArrayVariable, Indexer, read_channels
from jitkit.domains.arrays.splits import ItemIndex, shuffled_in_blocks
from jitkit.protocols import Chunked
from jitkit.stores.chunks import as_slices
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable

BLOCK_BYTES = 2**26  # of a block for statistics, as float32; several are in memory at once
SPANS_PER_GROUP = 8  # windows that share steps are read together, in groups of 8 window lengths


@dataclass(frozen=True, eq=False)
class Sample:
    """An item in physical units.

    Attributes:
        values: (C, X1..Xn) float32, NaN where missing; the steps of a window are X1.
        cond: conditions by name: maps (channels, X1..Xn) as ``past`` and ``grids``, numbers and
            classes (None if missing) by their names in the recipe.
        index: of the first step in the store, by sample dimension; empty for a generated sample.
        name: coordinates of the first step, as text.
    """

    values: Array
    cond: Mapping[str, Any] = field(default_factory=dict)
    index: Mapping[str, int] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True, eq=False)
class ReadSpec:
    """Everything that is read for an item.

    Attributes:
        store, plan: the data.
        grids: other variables, read at the same time as the item.
        series: scalar and categorical conditions along sample dimensions, by name.
        window: steps per item.
        past: steps before it.
        spacing: entries from one step to the next.
        buffer_bytes: size of the store's buffer of decoded chunks.
        threads: concurrent reading threads.
    """

    store: Readable
    plan: ArrayPlan
    grids: tuple[ArrayVariable, ...]
    series: Mapping[str, Series]
    window: int
    past: int
    spacing: int
    buffer_bytes: int
    threads: int

    @property
    def span(self) -> int:
        """Entries from the first to the last step that is read for an item."""
        return (self.window + self.past - 1) * self.spacing + 1


class ArrayItems(Chunked, Sequence[Sample]):
    """The items of a split. Thread-safe; pickled without open files.

    Attributes:
        item_index: start positions of the items.
        threads: concurrent reading threads.
    """

    def __init__(self, spec: ReadSpec, item_index: ItemIndex) -> None:
        self._spec, self.item_index = spec, item_index
        self._indexers = spec.plan.indexers()
        self.threads = spec.threads

    def __len__(self) -> int:
        return len(self.item_index)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return self._read(self.item_index[range(len(self))[index]])

    def order(self, rng: np.random.Generator) -> Array:
        """Reading order of one epoch: a permutation of the items that depends only on ``rng``.

        Chunks are shuffled, as many as fill half the buffer form a block, and the items of a block
        are shuffled, so each chunk is decoded once per epoch. Windows that extend into the next
        chunk decode it a second time; windows that share steps are grouped with their neighbours.
        """
        groups, per_block = self._groups()
        return shuffled_in_blocks(groups, per_block, rng)

    def _read(self, position: Mapping[str, int]) -> Sample:
        spec = self._spec
        plan, past = spec.plan, spec.past
        entries = {dim: int(plan.entries[dim][position[dim]]) for dim in plan.sample}
        start = position[plan.along]
        cond: dict[str, Any] = {name: s.at(position) for name, s in spec.series.items()}
        if spec.grids:
            cond["grids"] = self._maps(spec.grids, entries, start)
        first = start - past * spec.spacing
        steps = self._steps(plan.variables, entries, first, past + spec.window)
        values = steps[:, past:]
        if past:
            cond["past"] = self._past(steps[:, :past])
        if spec.window == 1:
            values = values[:, 0]
        return Sample(values, cond, entries, self._name(position))

    def _steps(
        self, variables: Sequence[ArrayVariable], entries: Mapping[str, int], start: int, count: int
    ) -> Array:
        """Consecutive steps from a position, (C, count, X1..Xn)."""
        plan, spacing = self._spec.plan, self._spec.spacing
        indexers: dict[str, Indexer] = {**self._indexers, **entries}
        steps = start + spacing * np.arange(count)
        indexers[plan.along] = as_slices(plan.entries[plan.along][steps])
        return read_channels(self._spec.store, variables, indexers, (plan.along,), plan.axes)

    def _maps(
        self, variables: Sequence[ArrayVariable], entries: Mapping[str, int], start: int
    ) -> Array:
        values = self._steps(variables, entries, start, self._spec.window)
        return values[:, 0] if self._spec.window == 1 else values

    def _past(self, steps: Array) -> Array:
        """Earlier steps as channels, the oldest first; repeated along a window."""
        channels, past, *grid = steps.shape
        maps = np.moveaxis(steps, 1, 0).reshape(past * channels, *grid)
        if self._spec.window == 1:
            return maps
        return np.repeat(maps[:, None], self._spec.window, axis=1)

    def _name(self, position: Mapping[str, int]) -> str:
        values = self._spec.plan.values
        return ", ".join(f"{dim}={label(values[dim][i])}" for dim, i in position.items())

    def _groups(self) -> tuple[Array, int]:
        """Group number of each item, and how many groups fill half the buffer."""
        spec = self._spec
        plan, half = spec.plan, spec.buffer_bytes // 2
        variables = (*plan.variables, *spec.grids)
        chunks = {dim: Chunks.of(spec.store, variables, dim) for dim in plan.sample}
        per_group = dict.fromkeys(chunks, 1)
        size = decoded_bytes(spec.store, variables, plan, per_group)
        if spec.span > 1:
            wanted = ceil(SPANS_PER_GROUP * (spec.span - 1) / chunks[plan.along].longest)
            per_group[plan.along] = max(1, min(wanted, half // 4 // max(1, size)))
            size = decoded_bytes(spec.store, variables, plan, per_group)
        keys = {
            dim: chunks[dim].number(plan.entries[dim][starts]) // per_group[dim]
            for dim, starts in self.item_index.starts.items()
        }
        groups, _ = self.item_index.groups(keys)
        return groups, max(1, half // max(1, size))


@dataclass(frozen=True, eq=False)
class Chunks:
    """Chunks along a dimension, of the variable that has the longest.

    Attributes:
        starts: first entry of each chunk, then the size of the dimension.
    """

    starts: Array

    @classmethod
    def of(cls, store: Readable, variables: Sequence[ArrayVariable], dim: str) -> Chunks:
        """Chunks along a dimension that at least one of the variables has."""
        return cls(min((store.starts(v.name, dim) for v in variables if dim in v.dims), key=len))

    @property
    def longest(self) -> int:
        """Entries of the longest chunk."""
        return int(np.diff(self.starts).max(initial=1))

    def number(self, entries: Array) -> Array:
        """Chunk number of each entry."""
        return np.searchsorted(self.starts, entries, side="right") - 1

    def split(self, entries: Array, length: int) -> list[Array]:
        """Entries split into pieces of about ``length``: whole chunks, or parts of one."""
        number = self.number(entries)
        key = number // max(1, length // self.longest)
        if length < self.longest:
            key = key * self.longest + (entries - self.starts[number]) // length
        return np.split(entries, np.flatnonzero(np.diff(key)) + 1)


def decoded_bytes(
    store: Readable,
    variables: Sequence[ArrayVariable],
    plan: ArrayPlan,
    num_chunks: Mapping[str, int],
) -> int:
    """Bytes of the decoded chunks that are read for one group of items.

    Args:
        store, plan: the data.
        variables: to read.
        num_chunks: consecutive chunks along each sample dimension.
    """
    total = 0
    for v in variables:
        info = store.variables[v.name]
        cells = 1
        for dim, size, chunk in zip(v.dims, info.shape, info.chunks, strict=True):
            all_chunks = len(np.unique(plan.entries[dim] // chunk))
            cells *= min(size, num_chunks.get(dim, all_chunks) * chunk)
        total += cells * info.dtype.itemsize
    return total


# Blocks for statistics


def block_entries(
    store: Readable,
    plan: ArrayPlan,
    variables: Sequence[ArrayVariable],
    train: Array,
    max_values: int | None,
) -> list[dict[str, Array]]:
    """Blocks that read the training split once, each chunk once.

    Args:
        store, plan: the data.
        variables: to read; their chunks determine the blocks.
        train: training positions along the first sample dimension.
        max_values: approximate number of values to read; if there are more, evenly spread blocks
            are read. None reads all.

    Returns:
        The entries of each block along every sample dimension of the variables.
    """
    dims = [dim for dim in plan.sample if any(dim in v.dims for v in variables)]
    entries = {dim: plan.entries[dim] for dim in dims}
    if plan.sample[0] in entries:
        entries[plan.sample[0]] = entries[plan.sample[0]][train]
    chunks = {dim: Chunks.of(store, variables, dim) for dim in dims}
    values = prod(plan.grid) * sum(len(v.channels) for v in variables)
    total = values * prod(len(entries[dim]) for dim in dims)
    limit = max_values if max_values is not None and max_values < total else None
    max_bytes = BLOCK_BYTES if limit is None else min(BLOCK_BYTES, limit // 2)  # at least 8 blocks
    lengths = _block_lengths({d: chunks[d].longest for d in dims}, values * 4, max_bytes)
    parts = [chunks[dim].split(entries[dim], lengths[dim]) for dim in dims]
    blocks = [dict(zip(dims, block, strict=True)) for block in product(*parts)]
    if limit is None:
        return blocks
    count = max(1, len(blocks) * limit // total)
    return [blocks[i * len(blocks) // count] for i in range(count)]


def _block_lengths(chunks: Mapping[str, int], item_bytes: int, max_bytes: int) -> dict[str, int]:
    """Entries of a block along each dimension: chunk lengths, halved or doubled to fit."""
    lengths = dict(chunks)

    def size() -> int:
        return item_bytes * prod(lengths.values())

    while size() > max_bytes and max(lengths.values(), default=1) > 1:
        longest = max(lengths, key=lambda dim: lengths[dim])
        lengths[longest] = ceil(lengths[longest] / 2)
    last = next(reversed(lengths), None)
    while last is not None and size() < max_bytes // 8 and lengths[last] < 2**20:
        lengths[last] *= 2
    return lengths


def read_blocks(
    store: Readable,
    plan: ArrayPlan,
    variables: Sequence[ArrayVariable],
    blocks: Sequence[Mapping[str, Array]],
) -> Iterator[Array]:
    """Values of each block in physical units, (n, C, X1..Xn)."""
    for block in blocks:
        indexers: dict[str, Indexer] = {
            **plan.indexers(),
            **{dim: as_slices(entries) for dim, entries in block.items()},
        }
        values = read_channels(store, variables, indexers, tuple(block), plan.axes)
        channels = len(values)
        lead = 1 + len(block)
        values = values.reshape(channels, -1, *values.shape[lead:])  # (C, n, X1..Xn)
        yield np.moveaxis(values, 1, 0)
