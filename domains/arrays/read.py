"""Variables of a store as channels on one grid, read in boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable

Cut = int | tuple[slice, ...]
"""What is read along a dimension: one entry, which drops it, or stretches of it in order."""


@dataclass(frozen=True)
class ArrayVariable:
    """A variable as channels.

    Attributes:
        name: in the store.
        dims: its dimensions, in the store's order.
        unrolled: those whose entries are channels.
        channels: their names, ``name`` itself or ``name.500``, the last unrolled dimension fastest.
    """

    name: str
    dims: tuple[str, ...]
    unrolled: tuple[str, ...]
    channels: tuple[str, ...]


def fetch(
    store: Readable,
    name: str,
    dims: Sequence[str],
    cuts: Mapping[str, Cut],
    order: Sequence[str],
) -> Array:
    """Values of a variable, float32, physical, NaN where missing.

    Args:
        store: where it is.
        name: the variable.
        dims: its dimensions.
        cuts: what is read along each of them.
        order: of the result's dimensions; all those of ``dims`` that are not cut to one entry.
    """
    split = next((dim for dim in dims if _several(cuts[dim])), None)
    if split is not None:
        cut = cuts[split]
        assert isinstance(cut, tuple)
        parts = [fetch(store, name, dims, {**cuts, split: (part,)}, order) for part in cut]
        return np.concatenate(parts, axis=list(order).index(split))
    where = {dim: cut if isinstance(cut := cuts[dim], int) else cut[0] for dim in dims}
    kept = [dim for dim in dims if isinstance(where[dim], slice)]
    return store.read(name, where).transpose([kept.index(dim) for dim in order])


def _several(cut: Cut) -> bool:
    return isinstance(cut, tuple) and len(cut) > 1


def read_channels(
    store: Readable,
    variables: Sequence[ArrayVariable],
    cuts: Mapping[str, Cut],
    leading: Sequence[str],
    axes: Iterable[str],
) -> Array:
    """Variables as channels on one grid, (C, leading..., X1..Xn) float32, NaN where missing.

    A variable that lacks a leading dimension or an axis has the same values all along it.

    Args:
        store: where they are.
        variables: which, in the order of the channels.
        cuts: what is read along every dimension that they have, and along ``leading`` and ``axes``.
        leading: sample dimensions that are not cut to one entry.
        axes: of the grid.
    """
    after = (*leading, *axes)
    sizes = [_length(cuts[dim]) for dim in after]
    out = np.empty((sum(len(v.channels) for v in variables), *sizes), np.float32)
    at = 0
    for v in variables:
        order = (*v.unrolled, *(dim for dim in after if dim in v.dims))
        values = fetch(store, v.name, v.dims, cuts, order)
        shape = [n if dim in v.dims else 1 for dim, n in zip(after, sizes, strict=True)]
        out[at : at + len(v.channels)] = values.reshape(len(v.channels), *shape)
        at += len(v.channels)
    return out


def _length(cut: Cut) -> int:
    return 1 if isinstance(cut, int) else sum(len(range(c.start, c.stop, c.step)) for c in cut)
