"""Read variables of a store as channels on one grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable

Indexer = int | tuple[slice, ...]
"""Indexer of one dimension: one entry (which drops the dimension), or slices in order."""


@dataclass(frozen=True)
class ArrayVariable:
    """A variable as channels.

    Attributes:
        name: in the store.
        dims: its dimensions, in the store's order.
        unrolled: dimensions whose entries are channels.
        channels: their names, ``name`` or ``name.500``; the last unrolled dimension varies fastest.
    """

    name: str
    dims: tuple[str, ...]
    unrolled: tuple[str, ...]
    channels: tuple[str, ...]


def read_variable(
    store: Readable,
    name: str,
    dims: Sequence[str],
    indexers: Mapping[str, Indexer],
    order: Sequence[str],
) -> Array:
    """Values of a variable, float32 in physical units, NaN where missing.

    Args:
        store: that holds the variable.
        name: of the variable.
        dims: its dimensions.
        indexers: what to read along each dimension.
        order: of the result's dimensions: all of ``dims`` that are not indexed by one entry.
    """
    split = next((dim for dim in dims if _has_several_slices(indexers[dim])), None)
    if split is not None:
        slices = indexers[split]
        assert isinstance(slices, tuple)
        parts = [read_variable(store, name, dims, {**indexers, split: (s,)}, order) for s in slices]
        return np.concatenate(parts, axis=list(order).index(split))
    box = {dim: i if isinstance(i := indexers[dim], int) else i[0] for dim in dims}
    kept = [dim for dim in dims if isinstance(box[dim], slice)]
    return store.read(name, box).transpose([kept.index(dim) for dim in order])


def _has_several_slices(indexer: Indexer) -> bool:
    return isinstance(indexer, tuple) and len(indexer) > 1


def read_channels(
    store: Readable,
    variables: Sequence[ArrayVariable],
    indexers: Mapping[str, Indexer],
    leading: Sequence[str],
    axes: Iterable[str],
) -> Array:
    """Variables as channels on one grid, (C, leading..., X1..Xn) float32, NaN where missing.

    A variable that lacks a leading dimension or an axis is broadcast along it.

    Args:
        store: that holds the variables.
        variables: to read, in the order of the channels.
        indexers: what to read along each of their dimensions, and along ``leading`` and ``axes``.
        leading: sample dimensions that are not indexed by one entry.
        axes: of the grid.
    """
    after = (*leading, *axes)
    sizes = [_length(indexers[dim]) for dim in after]
    out = np.empty((sum(len(v.channels) for v in variables), *sizes), np.float32)
    start = 0
    for v in variables:
        order = (*v.unrolled, *(dim for dim in after if dim in v.dims))
        values = read_variable(store, v.name, v.dims, indexers, order)
        shape = [n if dim in v.dims else 1 for dim, n in zip(after, sizes, strict=True)]
        out[start : start + len(v.channels)] = values.reshape(len(v.channels), *shape)
        start += len(v.channels)
    return out


def _length(indexer: Indexer) -> int:
    if isinstance(indexer, int):
        return 1
    return sum(len(range(s.start, s.stop, s.step)) for s in indexer)
