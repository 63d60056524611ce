"""Quantiles of a stream of any length in bounded memory, without chance, with a bound on the error.

The sketch of Munro & Paterson (1980, Theor. Comput. Sci. 12: 315-323), as Manku, Rajagopalan &
Lindsay (1998, SIGMOD: 426-435) describe it: sorted buffers of ``size`` values, two of one weight
thinned to one of twice the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import numpy as np

from jitkit.utils.types import Array


class QuantileSketch:
    """Quantiles of all numbers that were added, exact up to ``size`` of them.

    Past that the rank of an answer is off by at most `rank_error` of the count, in practice by a
    tenth of that. What is kept is a function of the numbers in their order alone, however they
    were cut into pieces. A level holds at most one buffer, so ``size * (levels + 1)`` float64
    numbers are kept: 1.1 MB for a billion with the default size.
    """

    def __init__(self, size: int = 8192) -> None:
        self.size = size
        self.count = 0
        self._levels: list[Array | None] = []  # sorted; a value on level l stands for 2^l
        self._odd: list[bool] = []  # which half is kept next, in turn, so that errors cancel
        self._open: list[Array] = []  # fewer than `size` values in all, not sorted yet

    def add(self, values: Array) -> None:
        """Take in numbers, (n,); none of them NaN."""
        self.count += len(values)
        waiting = np.concatenate([*self._open, values.astype(np.float64)])
        full = len(waiting) // self.size * self.size
        for buffer in np.sort(waiting[:full].reshape(-1, self.size), axis=1):
            self._push(buffer, 0)
        self._open = [waiting[full:].copy()]

    def merge(self, other: QuantileSketch) -> None:
        """Take in all numbers of another sketch of the same size."""
        assert self.size == other.size
        for level, buffer in enumerate(other._levels):
            if buffer is not None:
                self._push(buffer, level)
                self.count += self.size << level
        for values in other._open:
            self.add(values)

    @property
    def rank_error(self) -> float:
        """How far the rank of an answer may be off, as a share of the count."""
        if self.count <= self.size:
            return 0.0
        return (log2(self.count / self.size) + 1) / (2 * self.size)

    def quantiles(self, shares: Sequence[float]) -> Array:
        """The values below which these shares of the numbers lie, as `numpy.quantile` has them."""
        assert self.count, "quantiles of nothing"
        parts = [(np.concatenate(self._open), 1)] if self._open else []
        parts += [(b, 1 << level) for level, b in enumerate(self._levels) if b is not None]
        values = np.concatenate([part for part, _ in parts])
        weights = np.concatenate([np.full(len(part), weight) for part, weight in parts])
        order = np.argsort(values, kind="stable")
        values, weights = values[order], weights[order]
        ranks = np.cumsum(weights) - (weights + 1) / 2  # 0, 1, 2, ... where all weights are 1
        return np.interp(np.asarray(shares) * (self.count - 1), ranks, values)

    def _push(self, buffer: Array, level: int) -> None:
        """Put a sorted buffer on a level; where one lies there, thin both to one level up."""
        while len(self._levels) <= level:
            self._levels.append(None)
            self._odd.append(False)
        there = self._levels[level]
        if there is None:
            self._levels[level] = buffer
            return
        both = np.sort(np.concatenate([there, buffer]), kind="stable")
        kept = both[int(self._odd[level]) :: 2]
        self._odd[level] = not self._odd[level]
        self._levels[level] = None
        self._push(kept, level + 1)
