"""Which entries belong to training and which to validation, and in what order they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from jitkit.domain import Split
from jitkit.domains.arrays.coordinates import Selection, holes, label, matching
from jitkit.errors import DataError
from jitkit.sections import Section
from jitkit.utils.types import Array


class SplitsSection(Section):
    """Which entries of the first sample dimension are for training and which are held out."""

    val: Selection
    """Held out: a range or a list of values."""
    train: Selection | None = None
    """For training; all that is not held out where not given. What is in neither is left alone."""


def split(
    values: Array, *, dim: str, share: float, gap: int, explicit: SplitsSection | None
) -> dict[Split, Array]:
    """Positions along a dimension that belong to each split, in order.

    Args:
        values: coordinate of the entries, (n,), in the order of the data.
        dim: its name, for messages.
        share: share at the end that is held out.
        gap: training entries as near as this to a held-out one are left out.
        explicit: both splits by value, in place of ``share``.

    Raises:
        DataError: the splits share entries, or nothing is left for training.
    """
    num = len(values)
    if explicit is None:
        held = min(num, max(1, round(share * num))) if share else 0
        val, train = np.arange(num - held, num), np.arange(num - held)
    else:
        val = np.unique(matching(values, explicit.val, "domain.splits.val"))
        rest = np.setdiff1d(np.arange(num), val)
        train = rest
        if explicit.train is not None:
            train = np.unique(matching(values, explicit.train, "domain.splits.train"))
            _check_apart(values, train, val, dim)
    train = train[_distance(train, val) > gap]
    if not len(train):
        raise DataError(
            f"no {dim} is left for training: {len(val)} of {num} are held out, with a gap of "
            f"{gap}; lower domain.val (0 holds out nothing) or domain.gap"
        )
    return {"train": train, "val": val}


def _check_apart(values: Array, train: Array, val: Array, dim: str) -> None:
    both = np.intersect1d(train, val)
    if len(both):
        first, last = label(values[both[0]]), label(values[both[-1]])
        raise DataError(
            f"domain.splits: train and val share {len(both)} of {dim} ({first} to {last}); held-"
            "out data must not be trained on: let one end where the other begins"
        )


def _distance(entries: Array, others: Array) -> Array:
    """Steps from each entry to the nearest of the others, both in order."""
    if not len(others):
        return np.full(len(entries), np.iinfo(np.int64).max)
    after = np.searchsorted(others, entries)
    right = others[np.minimum(after, len(others) - 1)]
    left = others[np.maximum(after - 1, 0)]
    return np.minimum(abs(right - entries), abs(left - entries))


def starts(
    values: Array, members: Array, *, window: int, past: int, stride: int, spacing: int = 1
) -> Array:
    """First positions of the windows that lie, with their past, wholly among ``members``.

    A window does not reach over a hole in the coordinate, which is a step more than half as long
    again as the usual one: months differ in length, a lost file is a hole.

    Args:
        values: coordinate of all entries, (n,).
        members: positions of a split, in order.
        window: steps of an item.
        past: steps before it that it is told.
        stride: steps from one window to the next.
        spacing: entries from one step of a window, or of its past, to the next.
    """
    if window + past == 1:
        return members[::stride]
    cut = np.flatnonzero((np.diff(members) != 1) | holes(values)[members[1:] - 1]) + 1
    found = [
        run[0] + np.arange(past * spacing, len(run) - (window - 1) * spacing, stride)
        for run in np.split(members, cut)
        if len(run)
    ]
    return np.concatenate([np.empty(0, np.int64), *found])


@dataclass(frozen=True, eq=False)
class Places:
    """Where the items of a split begin: every combination of the starts along each dimension.

    Attributes:
        starts: by sample dimension, positions; the last dimension changes fastest.
    """

    starts: Mapping[str, Array]

    def __len__(self) -> int:
        return prod(len(starts) for starts in self.starts.values())

    def __getitem__(self, index: int) -> dict[str, int]:
        """Position along each sample dimension."""
        place: dict[str, int] = {}
        for dim in reversed(list(self.starts)):
            index, at = divmod(index, len(self.starts[dim]))
            place[dim] = int(self.starts[dim][at])
        return {dim: place[dim] for dim in self.starts}

    def groups(self, keys: Mapping[str, Array]) -> tuple[Array, int]:
        """For each item, the number of its group, counted from 0 without gaps; and how many.

        Args:
            keys: by dimension, the group of each start along it; items of one group agree in all.
        """
        group, size = np.zeros((), np.int64), 1
        for dim in self.starts:
            _, own = np.unique(keys[dim], return_inverse=True)
            count = int(own.max(initial=-1)) + 1
            group, size = group[..., None] * count + own, size * count
        return group.ravel(), size


def shuffled_in_blocks(groups: Array, per_block: int, rng: np.random.Generator) -> Array:
    """A permutation of the items that uses up a block of groups before the next one.

    The groups are shuffled, ``per_block`` at a time make a block, and the items of a block are
    shuffled: what is decoded for a group is used while it is in memory, and read no second time.

    Args:
        groups: number of each item's group, (n,), from 0 without gaps.
        per_block: groups whose chunks fit in memory together.
        rng: the only source of chance.
    """
    rank = rng.permutation(int(groups.max(initial=-1)) + 1)
    return np.lexsort((rng.random(len(groups)), rank[groups] // per_block))
