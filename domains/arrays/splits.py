"""Training and validation split, windows of consecutive steps, item index, shuffling in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from jitkit.domain import Split
from jitkit.domains.arrays.coordinates import Selection, find_gaps, label, matching
from jitkit.errors import DataError
from jitkit.sections import Section
from jitkit.utils.types import Array


class SplitsSection(Section):
    """Training and validation entries of the first sample dimension."""

    val: Selection
    """Validation entries: a range or a list of values."""
    train: Selection | None = None
    """Training entries; by default all others. Entries in neither split are not used."""


def split(
    values: Array, *, dim: str, share: float, gap: int, explicit: SplitsSection | None
) -> dict[Split, Array]:
    """Positions of the training and validation entries along a dimension, in order.

    Args:
        values: coordinate of the entries, (n,), in the order of the data.
        dim: its name, for messages.
        share: fraction for validation, at the end.
        gap: training entries within this distance of a validation entry are left out.
        explicit: both splits by coordinate, instead of ``share``.

    Raises:
        DataError: the splits share entries, or nothing is left for training.
    """
    num = len(values)
    if explicit is None:
        num_val = min(num, max(1, round(share * num))) if share else 0
        val, train = np.arange(num - num_val, num), np.arange(num - num_val)
    else:
        val = np.unique(matching(values, explicit.val, "domain.splits.val"))
        rest = np.setdiff1d(np.arange(num), val)
        train = rest
        if explicit.train is not None:
            train = np.unique(matching(values, explicit.train, "domain.splits.train"))
            _check_disjoint(values, train, val, dim)
    train = train[_distance(train, val) > gap]
    if not len(train):
        raise DataError(
            f"no {dim} is left for training: {len(val)} of {num} are for validation, with a gap "
            f"of {gap}; lower domain.val (0: no validation split) or domain.gap"
        )
    return {"train": train, "val": val}


def _check_disjoint(values: Array, train: Array, val: Array, dim: str) -> None:
    shared = np.intersect1d(train, val)
    if len(shared):
        first, last = label(values[shared[0]]), label(values[shared[-1]])
        raise DataError(
            f"domain.splits: train and val share {len(shared)} of {dim} ({first} to {last}); "
            "validation data must not be trained on: let one end where the other begins"
        )


def _distance(entries: Array, others: Array) -> Array:
    """Steps from each entry to the nearest of the others; both are sorted."""
    if not len(others):
        return np.full(len(entries), np.iinfo(np.int64).max)
    after = np.searchsorted(others, entries)
    right = others[np.minimum(after, len(others) - 1)]
    left = others[np.maximum(after - 1, 0)]
    return np.minimum(abs(right - entries), abs(left - entries))


def window_starts(
    values: Array, members: Array, *, window: int, past: int, stride: int, spacing: int = 1
) -> Array:
    """First positions of the windows that, with their past steps, are entirely in ``members``.

    A window does not cross a gap of the coordinate. A gap is a step longer than 1.5 times the
    median step: months of different length are no gap, a lost file is one.

    Args:
        values: coordinate of all entries, (n,).
        members: positions of a split, sorted.
        window: steps per item.
        past: earlier steps that condition the item.
        stride: steps from one window to the next.
        spacing: entries from one step of a window, or of its past, to the next.
    """
    if window + past == 1:
        return members[::stride]
    breaks = np.flatnonzero((np.diff(members) != 1) | find_gaps(values)[members[1:] - 1]) + 1
    found = [
        run[0] + np.arange(past * spacing, len(run) - (window - 1) * spacing, stride)
        for run in np.split(members, breaks)
        if len(run)
    ]
    return np.concatenate([np.empty(0, np.int64), *found])


@dataclass(frozen=True, eq=False)
class ItemIndex:
    """Index of the items of a split: the product of the start positions along each dimension.

    Attributes:
        starts: start positions by sample dimension; the last dimension varies fastest.
    """

    starts: Mapping[str, Array]

    def __len__(self) -> int:
        return prod(len(starts) for starts in self.starts.values())

    def __getitem__(self, index: int) -> dict[str, int]:
        """Start position of an item along each sample dimension."""
        position: dict[str, int] = {}
        for dim in reversed(list(self.starts)):
            index, i = divmod(index, len(self.starts[dim]))
            position[dim] = int(self.starts[dim][i])
        return {dim: position[dim] for dim in self.starts}

    def groups(self, keys: Mapping[str, Array]) -> tuple[Array, int]:
        """Group number of each item, consecutive from 0, and the number of groups.

        Args:
            keys: by dimension, a key of each start; items with equal keys along all dimensions are
                a group.
        """
        group, size = np.zeros((), np.int64), 1
        for dim in self.starts:
            _, along = np.unique(keys[dim], return_inverse=True)
            count = int(along.max(initial=-1)) + 1
            group, size = group[..., None] * count + along, size * count
        return group.ravel(), size


def shuffled_in_blocks(groups: Array, per_block: int, rng: np.random.Generator) -> Array:
    """A random permutation of the items that finishes one block of groups before the next.

    The groups are shuffled, each ``per_block`` of them form a block, and the items of a block are
    shuffled: the chunks of a group are decoded once and used while they are in memory.

    Args:
        groups: group number of each item, (n,), consecutive from 0.
        per_block: groups whose chunks fit in memory together.
        rng: the only source of randomness.
    """
    rank = rng.permutation(int(groups.max(initial=-1)) + 1)
    return np.lexsort((rng.random(len(groups)), rank[groups] // per_block))
