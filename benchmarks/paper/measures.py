"""Distances of distributions in the plane, and means over seeds with their interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi, sqrt

import numpy as np

from jitkit.utils.types import Array

DIRECTIONS = 64


def sliced_wasserstein(a: Array, b: Array) -> float:
    """Sliced Wasserstein-2 distance of two sets of points in the plane, (n, 2) each.

    √2 times the root mean over directions of W2² of the projections, so that a shift by d has the
    distance |d| (Bonneel et al. 2015, without the factor).
    """
    angles = pi * np.arange(DIRECTIONS) / DIRECTIONS
    lines = np.stack([np.cos(angles), np.sin(angles)])  # (2, directions)
    along_a, along_b = np.sort(a @ lines, axis=0), np.sort(b @ lines, axis=0)
    return sqrt(2 * float(np.square(along_a - along_b).mean()))


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        low, high: its 95 % interval by Student's t for three or more seeds; for two seeds, their
            two values; for one, the interval from its own standard deviation, None if it has none.
        n: number of seeds.
    """

    value: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float], deviation: float | None = None) -> Mean:
        """From one value per seed; ``deviation`` is the standard deviation of a single one."""
        mean, n = float(np.mean(values)), len(values)
        if n == 1 and deviation is None:
            return cls(mean, None, None, n)
        if n == 1 and deviation is not None:
            return cls(mean, mean - 1.96 * deviation, mean + 1.96 * deviation, n)
        if n == 2:
            return cls(mean, min(values), max(values), n)
        from scipy.stats import t

        reach = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / sqrt(n)
        return cls(mean, mean - reach, mean + reach, n)

    def __str__(self) -> str:
        """Three digits, as in ``0.552 (0.531 to 0.573)``."""
        if self.low is None or self.high is None:
            return f"{self.value:.3g}"
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"
