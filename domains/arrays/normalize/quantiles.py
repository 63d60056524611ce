"""Streaming quantiles in bounded memory: a seeded uniform sample of the values (a reservoir)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jitkit.utils.types import Array

SIZE = 2**18
SEED = 0


class Reservoir:
    """Quantiles of all added values, exact up to ``size`` of them.

    Beyond that they are those of a uniform sample without replacement: the values with the smallest
    of one random key each (Vitter 1985, ACM TOMS 11: 37-57, algorithm of keys). The rank of the
    p-quantile then has a standard error of sqrt(p (1 - p) / size), 0.1 % of the count for the
    median; there is no bound on it. The keys come from a fixed seed in the order of the values, so
    the state does not depend on the pieces in which they are added.
    """

    def __init__(self, size: int = SIZE) -> None:
        self.size, self.count = size, 0
        self._random = np.random.default_rng(SEED)
        self._keys, self._values = np.zeros(0), np.zeros(0)
        self._largest = np.inf  # keys from here on are not in the sample

    def add(self, values: Array) -> None:
        """Add values, (n,), without NaN."""
        self.count += len(values)
        keys = self._random.random(len(values))
        kept = keys < self._largest
        self._keys = np.concatenate([self._keys, keys[kept]])
        self._values = np.concatenate([self._values, values[kept]])
        if len(self._keys) > 2 * self.size:
            self._shrink()

    def quantiles(self, probabilities: Sequence[float]) -> Array:
        """Quantiles at these probabilities, as by `numpy.quantile`."""
        assert self.count, "quantiles of nothing"
        self._shrink()
        return np.quantile(self._values, probabilities)

    def _shrink(self) -> None:
        """Keep the values with the smallest keys."""
        if len(self._keys) <= self.size:
            return
        smallest = np.argpartition(self._keys, self.size)
        self._largest = float(self._keys[smallest[self.size]])
        smallest = smallest[: self.size]
        self._keys, self._values = self._keys[smallest], self._values[smallest]
