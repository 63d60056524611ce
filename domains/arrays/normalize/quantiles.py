"""Streaming quantiles in bounded memory: a deterministic sketch with a bound on the rank error.

The sketch of Munro & Paterson (1980, Theor. Comput. Sci. 12: 315-323), as described by Manku,
Rajagopalan & Lindsay (1998, SIGMOD: 426-435): sorted buffers of ``size`` values; two buffers of
equal weight are merged into one of twice the weight by keeping every second value.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import numpy as np

from jitkit.utils.types import Array


class QuantileSketch:
    """Quantiles of all added values, exact up to ``size`` of them.

    Beyond that the rank error is at most `rank_error` of the count, in practice a tenth of that.
    The state depends only on the values and their order, not on the pieces in which they are
    added. A level holds at most one buffer, so at most ``size * (levels + 1)`` float64 values are
    stored: 1.1 MB for a billion values with the default size.
    """

    def __init__(self, size: int = 8192) -> None:
        self.size = size
        self.count = 0
        self._levels: list[Array | None] = []  # sorted; a value on level l has weight 2^l
        self._odd: list[bool] = []  # which half is kept next, alternating, so that errors cancel
        self._open: list[Array] = []  # fewer than `size` values in total, not sorted yet

    def add(self, values: Array) -> None:
        """Add values, (n,), without NaN."""
        self.count += len(values)
        pending = np.concatenate([*self._open, values.astype(np.float64)])
        full = len(pending) // self.size * self.size
        for buffer in np.sort(pending[:full].reshape(-1, self.size), axis=1):
            self._push(buffer, 0)
        self._open = [pending[full:].copy()]

    def merge(self, other: QuantileSketch) -> None:
        """Add all values of another sketch of the same size."""
        assert self.size == other.size
        for level, buffer in enumerate(other._levels):
            if buffer is not None:
                self._push(buffer, level)
                self.count += self.size << level
        for values in other._open:
            self.add(values)

    @property
    def rank_error(self) -> float:
        """Bound on the rank error of a quantile, as a fraction of the count."""
        if self.count <= self.size:
            return 0.0
        return (log2(self.count / self.size) + 1) / (2 * self.size)

    def quantiles(self, probabilities: Sequence[float]) -> Array:
        """Quantiles at these probabilities, interpolated as by `numpy.quantile`."""
        assert self.count, "quantiles of nothing"
        parts = [(np.concatenate(self._open), 1)] if self._open else []
        parts += [(b, 1 << level) for level, b in enumerate(self._levels) if b is not None]
        values = np.concatenate([part for part, _ in parts])
        weights = np.concatenate([np.full(len(part), weight) for part, weight in parts])
        order = np.argsort(values, kind="stable")
        values, weights = values[order], weights[order]
        ranks = np.cumsum(weights) - (weights + 1) / 2  # 0, 1, 2, ... if all weights are 1
        return np.interp(np.asarray(probabilities) * (self.count - 1), ranks, values)

    def _push(self, buffer: Array, level: int) -> None:
        """Put a sorted buffer on a level; if it is occupied, merge both into the next level."""
        while len(self._levels) <= level:
            self._levels.append(None)
            self._odd.append(False)
        existing = self._levels[level]
        if existing is None:
            self._levels[level] = buffer
            return
        both = np.sort(np.concatenate([existing, buffer]), kind="stable")
        half = both[int(self._odd[level]) :: 2]
        self._odd[level] = not self._odd[level]
        self._levels[level] = None
        self._push(half, level + 1)
